"""A network as a Denoiser: the one border where timesteps, parameterisations and autocast are known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..process import Latent, Prediction, Process, Reading, Time, pad_like
from .conditioning import Conditioning


@dataclass(frozen=True)
class CallForm:
    """How a network is called.

    Args:
        sample: name of the argument that takes x_t.
        timestep: name of the argument that takes the time.
        slope, offset: the network's timestep is `slope * scheduler timestep + offset`.
        sign: the network's output is this times what the scheduler's step is given.
        channels: leading output channels that are the prediction (the rest is a learned variance).
    """

    sample: str = "sample"
    timestep: str = "timestep"
    slope: float = 1.0
    offset: float = 0.0
    sign: float = 1.0
    channels: int | None = None


class NetworkDenoiser(nn.Module):
    """A network that a scheduler's reading gives meaning to.

    Args:
        net: called as `net(sample, timestep, **cond)`; stays in eval mode (some families drop labels or change
            their output in train mode).
        reading: the process, the row and the timestep of the network's scheduler.
        form: names, sign and channels of the call.
        autocast: dtype of the forward pass, None for the parameters' own.
    """

    net: nn.Module

    def __init__(
        self, net: nn.Module, reading: Reading, form: CallForm, *, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.net = net.eval()
        self.reading = reading
        self.form = form
        self.autocast = autocast

    @property
    def process(self) -> Process:
        return self.reading.process

    def forward(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        *,
        s: Time | None = None,
        guidance: Time | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        refuse_undeclared(s=s, guidance=guidance, **(extra or {}))
        output = self._run(x_t, t, cond).to(x_t.dtype) * self.form.sign
        return Prediction.solve(self.process, x_t, t, output[:, : self.form.channels], row=self.reading.row)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        """uncond + w (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, in Diffusers' convention)."""
        return null.lerp(cond, w)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        """See `Denoiser.tap`; even a compiled network runs as it was written, since compiled code knows no hooks."""
        taps = _Taps(self.net, layers)
        with taps:
            self._run(x_t, t, cond, call=self.net._call_impl)
        return taps.features

    def train(self, mode: bool = True) -> "NetworkDenoiser":
        """Stays in eval mode."""
        return super().train(False)

    def _run(self, x_t: Latent, t: Time, cond: Conditioning, *, call: Callable[..., Any] | None = None) -> Tensor:
        timestep = self.form.slope * self.reading.timestep(t) + self.form.offset
        scaled = x_t * pad_like(self.reading.input_scale(t), x_t)
        dtype = self.autocast or next(self.net.parameters()).dtype
        told: dict[str, Any] = {
            self.form.sample: scaled.to(x_t.dtype if self.autocast else dtype),
            self.form.timestep: timestep.to(x_t.device, torch.float32),
        }
        with torch.autocast(x_t.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = (call or self.net)(**told, **cond.kwargs)
        if isinstance(output, tuple):
            return output[0]
        return output if isinstance(output, Tensor) else output.sample


class RetargetedDenoiser(nn.Module):
    """A denoiser of one process that is spoken to in another: x0 and eps are the same on both."""

    def __init__(self, inner: NetworkDenoiser, process: Process) -> None:
        super().__init__()
        self.inner = inner
        self.process = process

    def forward(self, x_t: Latent, t: Time, cond: Conditioning, **embeddings: Any) -> Prediction:
        seen = self.process.retarget(self.inner.process, t)
        x_u = (x_t * pad_like(seen.scale, x_t)).to(x_t.dtype)
        inner = self.inner(x_u, seen.t, cond, **embeddings)
        return Prediction(self.process, t, inner.x0, inner.eps)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return self.inner.guide(cond, null, w)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        seen = self.process.retarget(self.inner.process, t)
        return self.inner.tap((x_t * pad_like(seen.scale, x_t)).to(x_t.dtype), seen.t, cond, layers)


def refuse_undeclared(**embeddings: Tensor | None) -> None:
    """Raises ValueError if a scalar embedding is given to a network that was built without it."""
    given = sorted(name for name, value in embeddings.items() if value is not None)
    if given:
        raise ValueError(f"the network has no embedding for {', '.join(given)}: declare it when the role is built")


class _Stop(Exception):
    """Raised by the hook of the last wanted layer."""


class _Taps:
    """Collects the outputs of named layers and ends the forward pass after the last of them."""

    def __init__(self, net: nn.Module, layers: Sequence[str]) -> None:
        self._modules = [net.get_submodule(layer) for layer in layers]
        self._seen: dict[int, Tensor] = {}

    @property
    def features(self) -> list[Tensor]:
        return [self._seen[i] for i in range(len(self._modules))]

    def __enter__(self) -> None:
        self._hooks = [module.register_forward_hook(self._collector(i)) for i, module in enumerate(self._modules)]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for hook in self._hooks:
            hook.remove()
        return kind is _Stop

    def _collector(self, i: int) -> Any:
        def collect(_module: nn.Module, _args: Any, output: Any) -> None:
            self._seen[i] = (output[0] if isinstance(output, tuple) else output).float()
            if len(self._seen) == len(self._modules):
                raise _Stop

        return collect
