"""What objectives may rely on: everything that speaks about noisy samples; and what a role adds to it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from ..process import Latent, Prediction, Process, Time
from .conditioning import Conditioning
from .head_bank import HeadBank
from .scalars import ScalarEmbeddings
from .sequences import Parts

BELIEF = ""
"""The name, among layers that are tapped, of the whole network: what it says is the denoiser's belief of x_t."""


@runtime_checkable
class Denoiser(Protocol):
    """(x_t, t, cond) -> Prediction, in fp32 or better whatever runs inside."""

    @property
    def process(self) -> Process: ...

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the scalars that it can be told."""
        ...

    def __call__(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        scalars: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """The belief about x_t [B, ...] at process times t [B].

        `scalars` are further values [B] by name, such as a second time "s", for which the role was given embeddings.

        Raises:
            ValueError: a scalar was given that the network has no embedding for.
        """
        ...

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        """Guided prediction; w = 1 is none."""
        ...

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Any]:
        """What those layers returned, in that order, None for one that was not called; of `BELIEF`, the Prediction.

        The rest of the network is not run where that is possible.
        """
        ...


class RoleNetwork(Denoiser, Protocol):
    """A denoiser over a network that plays a role: what it has of its own is trained, kept and handed on."""

    @property
    def net(self) -> nn.Module:
        """The network, which other roles may act on too."""
        ...

    @property
    def own(self) -> nn.Module:
        """What the role has of its own: the whole network, or its adapter on a shared one."""
        ...

    @property
    def embeddings(self) -> ScalarEmbeddings | HeadBank:
        """What makes something of the scalars that it can be told."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether what it has of its own and its embeddings require gradients."""
        ...

    parts: Parts | None
    """The division of the network's tokens among processes; None where every process has all of them."""

    def checkpoint_blocks(self, every: int = 1) -> None:
        """Blocks of the network are computed again in `backward`, every so-many-th of them.

        Raises:
            UserError: the network does not support it.
        """
        ...


@runtime_checkable
class Published(Protocol):
    """A role that computes with networks of published weights, which are no part of its state."""

    @property
    def published(self) -> Mapping[str, nn.Module]:
        """The networks of published weights that are known, by what they are."""
        ...
