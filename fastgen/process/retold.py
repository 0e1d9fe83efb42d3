"""A process spoken in place of the one that a network was trained on, starting where a stock pipeline starts."""

from dataclasses import dataclass
from typing import Literal

from .families import Flow, Trig
from .process import Process, pad_like
from .types import Latent, Levels, Time

ProcessName = Literal["native", "flow", "trig"]


class _Retold(Process):
    """Noise levels by the native log-SNR, and the native process's unit noise as the start of sampling."""

    native: Process

    def prior(self, eps: Latent, t: Time) -> Latent:
        seen = self.retarget(self.native, t)
        return (self.native.prior(eps, seen.t) / pad_like(seen.scale, eps)).to(eps.dtype)

    def grid_of(self, times: Levels) -> Levels:
        return self.time_of(self.native.logsnr(times))


@dataclass(frozen=True)
class FlowOf(_Retold, Flow):
    """The flow process over a network of another."""

    native: Process


@dataclass(frozen=True)
class TrigOf(_Retold, Trig):
    """TrigFlow over a network of another."""

    native: Process


def retold(name: ProcessName, native: Process) -> Process:
    """The process of that name for roles whose networks speak `native`."""
    if name == "native" or isinstance(native, {"flow": Flow, "trig": Trig}[name]):
        return native
    return FlowOf(native) if name == "flow" else TrigOf(native)
