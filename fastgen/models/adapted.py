"""A role of a shared network as a denoiser, which acts under its own adapter whenever it is called."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..process import Latent, Prediction, Process, Time
from .adapters import SharedNetwork
from .conditioning import Conditioning
from .denoiser import NetworkDenoiser
from .head_bank import HeadBank, Intervals
from .scalars import ScalarEmbeddings
from .sequences import Parts


class AdaptedDenoiser(nn.Module):
    """One role of a shared network. Its parameters and its state dict are its adapter; the base role has none.

    Args:
        denoiser: over `network.net`, shared by all roles.
        network: the switch.
        role: who acts; a role without an adapter is the base itself.
        scalars: names of further values that this role can be told, see `ScalarEmbeddings`.
        heads: what heads of this role in the place of the last linear layer speak of; in the place of scalars.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        network: SharedNetwork,
        role: str,
        *,
        scalars: Sequence[str] = (),
        heads: Intervals | None = None,
    ) -> None:
        super().__init__()
        own = network.net
        self.embeddings = ScalarEmbeddings(own, scalars) if heads is None else HeadBank(own, heads)
        self._network, self._hidden = network, (denoiser,)  # a tuple, so that it is not registered as a submodule
        self.role = role if role in network.adapters else None
        self.adapter = network.adapters.get(role, nn.Module())

    @property
    def _denoiser(self) -> NetworkDenoiser:
        return self._hidden[0]

    @property
    def net(self) -> nn.Module:
        """The shared network, under whatever role acts now."""
        return self._network.net

    @property
    def scale(self) -> float:
        """What its low-rank updates are multiplied by."""
        return self._network.scale

    @property
    def swapped(self) -> list[nn.Parameter]:
        """What of the base a role puts its own in the place of."""
        return self._network.swapped

    @property
    def own(self) -> nn.Module:
        """What a role has of its own: its adapter."""
        return self.adapter

    def requires_grad_(self, requires_grad: bool = True) -> "AdaptedDenoiser":
        """Sets it on the bank that its layers compute with; the adapter itself is part of no graph."""
        self.embeddings.requires_grad_(requires_grad)
        if self.role is not None:
            self._network.banks[self.role].requires_grad_(requires_grad)
        return self

    def collect_gradients(self) -> None:
        """Moves what a backward pass left to the adapter; to be called after each."""
        if self.role is not None:
            self._network.banks[self.role].collect()

    def checkpoint_blocks(self, every: int = 1) -> None:
        """See `SharedNetwork.checkpoint_blocks`."""
        self._network.checkpoint_blocks(every)

    @property
    def parts(self) -> Parts | None:
        """See `NetworkDenoiser.parts`."""
        return self._denoiser.parts

    @parts.setter
    def parts(self, parts: Parts | None) -> None:
        self._denoiser.parts = parts

    @property
    def process(self) -> Process:
        return self._denoiser.process

    @property
    def scalars(self) -> tuple[str, ...]:
        return self.embeddings.names

    def forward(
        self, x_t: Latent, t: Time, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        with self._network.acting(self.role):
            return self._denoiser.predict(x_t, t, cond, self.embeddings, scalars or {})

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return self._denoiser.guide(cond, null, w)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Any]:
        with self._network.acting(self.role):
            return self._denoiser.tap(x_t, t, cond, layers)
