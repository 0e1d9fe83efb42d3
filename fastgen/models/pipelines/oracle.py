"""A network that knows the answer, run in place of the real one and in the words of our reading of it (see `own`)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import UserError
from ...process import Reading, Time, pad_like
from ..denoiser import CallForm
from .canonical import PURE_NOISE, unit
from .watch import Answer, Step, first_value

RANGE = 0.9  # x0 stays below where schedulers clip
_DRAWS = (torch.randn, torch.randn_like, torch.normal)


@dataclass(frozen=True)
class Read:
    """What was read of a pipeline.

    Args:
        reading, form: what its scheduler means and how its network is called.
        like: a recorded step, for the shapes of samples and outputs.
        plain: name of the plainest scheduler of its process.
        allowed: relative difference of a check.
    """

    reading: Reading
    form: CallForm
    like: Step
    plain: str
    allowed: float

    @property
    def remedy(self) -> str:
        """What may help where it does not hold."""
        return (
            f"save the pipeline with a plain {self.plain}, if that has the times and the prediction_type that its "
            "network was trained for; a network that was trained otherwise cannot be used"
        )

    def time(self, said: float) -> Time:
        """Process time [1] of a timestep as the network is told it."""
        u = torch.tensor([(said - self.form.offset) / self.form.slope], dtype=torch.float64)
        return self.reading.time(u) if self.form.basis == "timestep" else u

    def said(self, t: Time) -> float:
        """The timestep that the network is told at process time t; the inverse of `time`."""
        u = self.reading.timestep(t) if self.form.basis == "timestep" else t
        return self.form.slope * float(u) + self.form.offset

    def timestep_at(self, t: Time) -> float:
        """What one of the scheduler's timesteps is, as the network is told it."""
        return abs(self.said(self.reading.time(self.reading.timestep(t) - 1)) - self.said(t))

    def shares(self, t: Time) -> tuple[float, float]:
        """What there is of x0 and of eps in a sample as the network is shown it."""
        scale, process = self.reading.input_scale(t), self.reading.process
        return float(scale * process.alpha(t)), float(scale * process.sigma(t))

    def sample(self, given: Any) -> Tensor:
        """The network's argument as the scheduler's sample, in float64."""
        x = torch.stack(given) if isinstance(given, list) else given
        return x.reshape(len(given), *self.like.sample.shape[1:]).double()

    def raw(self, output: Tensor) -> Any:
        """An output [B, ...] as the network returns it, but in float64; what else it returns beside is zero."""
        like, form = self.like.calls[-1].output, self.form
        wide = form.taken(like, self.like.sample)
        full = output.new_zeros(len(output), *wide.shape[1:])
        full[:, : output.shape[1]] = output * form.sign
        return full if form.listed is None else [row.reshape(like[0].shape) for row in full]


def _sharpen(scheduler: Any) -> None:
    """Makes a scheduler's tables float64: near pure noise their rounding would hide what it does to a sample."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
            setattr(scheduler, name, value.double())


class _Silence(TorchFunctionMode):
    """Within, noise that is drawn is zero; afterwards `broken` says whether any was."""

    broken = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _DRAWS:
            self.broken = True
            result.zero_()
        return result


class Oracle:
    """Answers for the network, and checks where that leads the scheduler."""

    def __init__(self, name: str, scheduler: Any, read: Read) -> None:
        self.name, self.scheduler, self.read = name, scheduler, read
        self.silence = _Silence()
        self.said: list[float] = []
        self.allowed, self.kept = read.allowed, 1.0
        self._elsewhere = ""

    def answer(self, told: BoundArguments) -> Any:
        """What the network returns of the sample and the time that it is told."""
        x, read = self.read.sample(told.arguments[self.read.form.sample]), self.read
        self.said.append(first_value(told.arguments[read.form.timestep]))
        self.t = read.time(self.said[-1])
        (self._follow if len(self.said) > 1 else self._begin)(x)
        row = read.reading.row(read.reading.process, self.t)
        p, q = pad_like(row.p, x), pad_like(row.q, x)
        return Answer([read.raw(p * self.x0 + q * self.kept * self.eps)])

    def step(self, stock: Callable[..., Any], told: BoundArguments) -> Any:
        """The scheduler's own step, without noise and rounding; the last one ends in the dtype that is decoded."""
        sample = told.arguments["sample"]
        if len(self.said) == 1:
            told.arguments["sample"] = self._unrounded(sample)
        with self.silence:
            stepped = stock(*told.args, **told.kwargs)
        if len(self.said) < len(self.scheduler.timesteps):
            return stepped
        last = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        return Answer([last.to(self.dtype), *stepped[1:]])

    def end(self, sample: Tensor) -> None:
        """Checks the sample that the last step returned."""
        a, b = (share / unit(self.scheduler) for share in self._shares(sample))
        if abs(a - 1) <= self.allowed and abs(b) <= self.allowed:
            return
        t, process = self._level(a, b), self.read.reading.process
        least, kept = float(process.alpha(self.t)), [1.0, float(process.alpha(t))]  # some keep x_t / alpha
        plain = min(abs(a - alpha) for alpha in kept) <= self.allowed or (self.silence.broken and least <= a <= 1)
        noise, most = float(process.sigma(t)), float(process.sigma(self.t)) * (1 + self.allowed)
        if not (plain and b >= 0 and noise <= most and t < self.start):
            raise self._astray(f"its last step ends at {a:.4g} x0 + {b:.4g} eps instead of at x0, the clean data")

    def _begin(self, x: Tensor) -> None:
        """Draws x0, and calls eps what else there is in the pipeline's first noise x."""
        rng = torch.Generator().manual_seed(0)
        self.x0 = (RANGE * (2 * torch.rand(x.shape, generator=rng, dtype=torch.float64) - 1)).to(x.device)
        if self._rounds:
            self.t = self._near(self._first_level(torch.randn(x.shape, generator=rng).to(x)))
        alpha, sigma = self.read.shares(self.t)
        if not sigma > 0:
            raise self._astray(f"of the noise that it starts from the network is told {self.said[0]:.6g}, clean data")
        if alpha > 0:  # samples that are kept as x_t / alpha have float32's rounding of sigma / alpha
            self.allowed = max(self.allowed, PURE_NOISE * sigma / alpha)
        self.shown, self.eps = x, (x - alpha * self.x0) / sigma
        self.start = self.t
        _sharpen(self.scheduler)

    def _unrounded(self, sample: Tensor) -> Tensor:
        """The first sample as the network was shown it: in half precision, scaling it has rounded it once more."""
        self.dtype, shown, theirs = sample.dtype, self.shown.reshape(sample.shape), sample.double()
        return shown * (theirs.square().sum() / (shown * theirs).sum())

    def _first_level(self, noise: Tensor) -> Time:
        """The time of the first stop, at which the scheduler mixes x0 and noise itself; else the told one."""
        x0, eps, first = self.x0.float(), noise.float(), self.scheduler.timesteps[:1]
        if hasattr(self.scheduler, "add_noise"):
            mixed = self.scheduler.add_noise(x0, eps, first)
        elif hasattr(self.scheduler, "scale_noise"):
            mixed = self.scheduler.scale_noise(x0, first, eps)
        else:
            return self.t
        return self._level(*_shares(mixed, x0.double(), eps.double())[:2])

    def _follow(self, x: Tensor) -> None:
        """Checks a later sample, of the told time or of one within its rounding.

        A level that the told time does not have is no fault yet, where a scheduler stops beside its own timesteps (DDIM
        by linspace): what the next step makes of an x0 believed at the told time shows what it takes it for.
        """
        a, b = self._shares(x)
        drawn, level = self.silence.broken, self._level(a, b)
        if self._rounds and not (drawn and self._fits(a, b, self.t)):
            self.t = self._near(self._time_of_share(a) if drawn else level)
        elif not drawn and not self._fits(a, b, self.t) and self._fits(a, b, level):
            said, due = self.said[-1], self.read.said(level)
            self._elsewhere = f"the network is told {said:.6g} at the noise level of {due:.6g}"
            alpha, sigma = self.read.shares(self.t)
            self.eps, self.kept = (x - alpha * self.x0) / sigma, 1.0
            return
        if not self._fits(a, b, self.t):
            wanted = "{:.4g} x0 + {:.4g} eps".format(*self.read.shares(self.t))
            raise self._astray(
                f"told {self.said[-1]:.6g}, the network is shown {a:.4g} x0 + {b:.4g} eps instead of {wanted}"
            )

    def _fits(self, a: float, b: float, t: Time) -> bool:
        """Whether the sample is of time t; sets how much of its noise is left of eps."""
        alpha, sigma = self.read.shares(t)
        if not sigma > 0:  # clean data are no stop
            return False
        slack = self.allowed * max(alpha, sigma)
        self.kept = b / sigma
        same = abs(b - sigma) <= slack or (self.silence.broken and -slack <= b <= sigma)
        return abs(a - alpha) <= slack and same

    @property
    def _rounds(self) -> bool:
        """Whether it tells the network levels between its trained ones by whole numbers."""
        return hasattr(self.scheduler, "sigmas") and not self.scheduler.timesteps.is_floating_point()

    def _near(self, t: Time) -> Time:
        """t if the told time is less than one timestep away from it."""
        said, due = self.said[-1], self.read.said(t)
        if not abs(said - due) < self.read.timestep_at(t) * (1 + self.read.allowed):
            raise self._astray(f"the network is told {said:.6g} at the noise level of {due:.6g}")
        return t

    def _level(self, a: float, b: float) -> Time:
        return self.read.reading.process.time_of(_logsnr(a, b))

    def _time_of_share(self, a: float) -> Time:
        """The time around the told one at which a sample has that much of x0."""
        step = self.read.timestep_at(self.t)
        ends = [self.read.time(self.said[-1] + sign * step) for sign in (-1, 1)]
        low, high = min(ends), max(ends)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.read.shares(middle)[0] > a else (low, middle)
        return low

    def _shares(self, sample: Tensor) -> tuple[float, float]:
        """a and b of a sample that is a x0 + b eps."""
        if sample.numel() != self.x0.numel():
            raise self._astray(f"its samples of {tuple(self.x0.shape)} become {tuple(sample.shape)}")
        if not sample.isfinite().all():
            raise self._astray(f"its sample after step {len(self.said) - 1} is not finite")
        a, b, gap = _shares(sample, self.x0, self.eps)
        if not gap <= self.allowed:
            raise self._astray(f"its sample after step {len(self.said) - 1} is off x0 and eps by {gap:.2g}")
        return a, b

    def _astray(self, measured: str) -> UserError:
        kind, config = type(self.scheduler), self.scheduler.config
        defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
        told = {k: v for k, v in config.items() if k == "prediction_type" or (k in defaults and v != defaults[k])}
        settings = ", ".join(f"{name}={value}" for name, value in told.items())
        return UserError(
            f"{self.name} cannot be used as a teacher under its own scheduler, {kind.__name__}({settings}), which "
            f"means something else by its network than fastgen reads: {self._elsewhere or measured}. To mend it, "
            f"{self.read.remedy}"
        )


def _logsnr(a: float, b: float) -> Tensor:
    return 2 * torch.tensor([max(a, 0.0)]).double().log() - 2 * torch.tensor([max(b, 0.0)]).double().log()


def _shares(sample: Tensor, x0: Tensor, eps: Tensor) -> tuple[float, float, float]:
    """a and b of the sample a x0 + b eps that is nearest, and the relative difference."""
    parts, x = torch.stack([x0.reshape(-1), eps.reshape(-1)], dim=1), sample.reshape(-1).double()
    shares = torch.linalg.solve(parts.T @ parts, parts.T @ x)
    return float(shares[0]), float(shares[1]), float((parts @ shares - x).abs().max() / x.abs().max())
