"""What objectives may rely on. Everything that speaks about noisy samples has this form."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..process import Latent, Prediction, Process, Time
from .conditioning import Conditioning


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
        """What those layers returned, in that order, None for one that was not called.

        The rest of the network is not run where that is possible.
        """
        ...
