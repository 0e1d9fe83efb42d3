"""A denoiser of one process as one of another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..process import Latent, Prediction, Process, Time, pad_like
from .conditioning import Conditioning
from .contract import RoleNetwork
from .head_bank import HeadBank
from .owned import collect_gradients
from .scalars import ScalarEmbeddings
from .sequences import Parts


class RetargetedDenoiser(nn.Module):
    """A denoiser of one process that is spoken to in another: x0 and eps are the same on both."""

    inner: RoleNetwork

    def __init__(self, inner: RoleNetwork, process: Process) -> None:
        super().__init__()
        self.inner = inner
        self.process = process

    @property
    def scalars(self) -> tuple[str, ...]:
        return self.inner.scalars

    @property
    def embeddings(self) -> ScalarEmbeddings | HeadBank:
        return self.inner.embeddings

    @property
    def net(self) -> nn.Module:
        return self.inner.net

    @property
    def own(self) -> nn.Module:
        """What a role has of its own, see `NetworkDenoiser.own`."""
        return self.inner.own

    def requires_grad_(self, requires_grad: bool = True) -> "RetargetedDenoiser":
        """Passed on to the inner denoiser, whose trained tensors need not be its parameters, see `AdaptedDenoiser`."""
        self.inner.requires_grad_(requires_grad)
        return self

    def checkpoint_blocks(self, every: int = 1) -> None:
        """See `enable_checkpointing`."""
        self.inner.checkpoint_blocks(every)

    @property
    def parts(self) -> Parts | None:
        """See `NetworkDenoiser.parts`."""
        return self.inner.parts

    @parts.setter
    def parts(self, parts: Parts | None) -> None:
        self.inner.parts = parts

    def collect_gradients(self) -> None:
        """See `owned.collect_gradients`."""
        collect_gradients(self.inner)

    def forward(
        self, x_t: Latent, t: Time, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        seen = self.process.retarget(self.inner.process, t)
        x_u = (x_t * pad_like(seen.scale, x_t)).to(x_t.dtype)
        inner = self.inner(x_u, seen.t, cond, scalars)
        return Prediction(self.process, t, inner.x0, inner.eps)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        seen = self.process.retarget(self.inner.process, cond.t)
        seen_cond, seen_null = (Prediction(self.inner.process, seen.t, half.x0, half.eps) for half in (cond, null))
        guided = self.inner.guide(seen_cond, seen_null, w)
        return Prediction(self.process, cond.t, guided.x0, guided.eps)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Any]:
        seen = self.process.retarget(self.inner.process, t)
        outputs = self.inner.tap((x_t * pad_like(seen.scale, x_t)).to(x_t.dtype), seen.t, cond, layers)
        return [replace(said, process=self.process, t=t) if isinstance(said, Prediction) else said for said in outputs]
