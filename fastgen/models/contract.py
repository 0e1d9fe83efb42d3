"""What objectives may rely on. Everything that speaks about noisy samples has this form."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..process import Latent, Prediction, Process, Time
from .conditioning import Conditioning


@runtime_checkable
class Denoiser(Protocol):
    """(x_t, t, cond) -> Prediction, in fp32 or better whatever runs inside."""

    @property
    def process(self) -> Process: ...

    def __call__(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        *,
        s: Time | None = None,
        guidance: Time | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """The belief about x_t [B, ...] at process times t [B].

        `s`, `guidance` and each name in `extra` are scalar embeddings [B] declared when the role is built.

        Raises:
            ValueError: an embedding was given that the network does not have.
        """
        ...

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        """Guided prediction; w = 1 is none."""
        ...

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        """The outputs of those layers, in that order; the rest of the network is not run where that is possible."""
        ...
