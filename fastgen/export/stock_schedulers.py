"""For each family of processes: the stock schedulers of a few-step student, and where they should stop.

Times that a pipeline emits are scheduler timesteps. Every family wants times that start at the noisiest trained
level and are even in the family's usual sense, with the clean end left out.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
)
from torch import Tensor

from ..errors import UserError
from ..models.pipelines.canonical import static_shift
from ..models.pipelines.refusal import checking
from ..models.pipelines.stock_pipeline import StockScheduler
from ..models.walk import Sampler
from ..process import EDM, Flow, Process, Trig, even_grid, from_scheduler
from .held import bend_of, held_times

_BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps", "rescale_betas_zero_snr")
_SCM_TIMES = (1.57080, 1.3)  # the defaults of SanaSprint's call
_SHIFT_STEPS = 28  # of the call that shows a shift which depends on the resolution

Emitted = Callable[[StockScheduler, int], list[float]]
"""(scheduler, n) -> scheduler timesteps at which a pipeline's call of n steps stops under it."""


@dataclass(frozen=True)
class Family:
    """What a family offers.

    Args:
        schedulers: n -> schedulers that may serve n steps, the most widely useful first.
        wanted: n -> the timesteps at which n steps should stop.
        refuses: n -> why no scheduler can serve n steps, None if some may.
        nearby: (n, what a network is told over the process time: slope and offset) -> the same family with stops
            moved a little, so that bf16 holds what the network is told there; the nearest first.
    """

    schedulers: Callable[[int], list[Any]]
    wanted: Callable[[int], list[float]]
    refuses: Callable[[int], str | None] = lambda n: None
    nearby: "Callable[[int, float, float], Iterable[Family]]" = lambda n, slope, offset: ()


def family_of(stock: StockScheduler, sampler: Sampler, emitted: Emitted, *, shift: float | None) -> Family:
    """The family of a teacher's scheduler; arguments as in `scheduler_exports`.

    Raises:
        UserError: no stock scheduler of that family samples so.
    """
    process = _process_of(stock)
    if isinstance(process, Flow):
        flow = FlowTimes(shift or _own_shift(stock, emitted), stock.config.num_train_timesteps)
        return flow.family(stochastic=sampler == "renoise")
    if shift not in (None, 1.0):
        kind = type(stock).__name__
        raise UserError(f"shift is {shift:g}, but the times of {kind} cannot be shifted: only a flow's can. Leave it")
    if isinstance(process, Trig):
        return _trig(stock, sampler)
    if isinstance(process, EDM):
        karras = _consistency if isinstance(stock, CMStochasticIterativeScheduler) else _edm
        return karras(stock, sampler)
    return _discrete(stock, sampler)


def _process_of(stock: StockScheduler) -> Process:
    try:
        return from_scheduler(stock).process
    except ValueError as error:
        raise UserError(f"students of {type(stock).__name__} pipelines cannot be exported: {error}") from error


def noise_factors(scheduler: StockScheduler, timesteps: list[float]) -> list[float]:
    """The standard deviation of the noise that a stock scheduler brings to each stop, over the process's own there.

    All ones, but an EDM scheduler starts from sqrt(sigma^2 + 1), and a consistency scheduler takes x0 to be noisy
    by sigma_min already (Song et al. 2023, arXiv:2303.01469, algorithm 1).
    """
    factors, config = [1.0] * len(timesteps), scheduler.config
    if isinstance(scheduler, EDMEulerScheduler):
        factors[0] = math.sqrt(1 + config.sigma_max**-2)
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        sigmas = [math.exp(t / 250) for t in timesteps]
        factors[1:] = [math.sqrt(1 - (config.sigma_min / sigma) ** 2) for sigma in sigmas[1:]]
    return factors


# Discrete, variance preserving


def _discrete(stock: Any, sampler: Sampler) -> Family:
    trained = len(stock.alphas_cumprod)
    common = {"prediction_type": stock.config.get("prediction_type", "epsilon"), "clip_sample": False}
    common["steps_offset"] = 1  # read by neither, but Stable Diffusion warns of any other value

    def wanted(n: int) -> list[float]:
        return [float(trained - i * trained // n - 1) for i in range(n)]

    if sampler == "renoise":
        # Skipping through all trained steps serves every count; the boundary scaling of LCM is switched off.
        common |= {"original_inference_steps": trained, "timestep_scaling": 1e9}
        return Family(lambda n: [_with_betas(LCMScheduler, stock, common)], wanted)
    common |= {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    return Family(
        lambda n: [_with_betas(DDIMScheduler, stock, common)],
        wanted,
        lambda n: f"a deterministic step must divide {trained} trained steps" if trained % n else None,
    )


def _with_betas(kind: type, stock: Any, common: dict[str, Any]) -> Any:
    """A scheduler with the very alphas_cumprod of `stock`: by its settings, or else written out as betas."""
    settings = {key: stock.config[key] for key in _BETAS if key in stock.config}
    with suppress(NotImplementedError):  # a schedule of betas that this kind does not know by name
        made = kind(**settings, **common)
        if torch.equal(made.alphas_cumprod, stock.alphas_cumprod):
            return made
    betas = betas_of(stock.alphas_cumprod)
    return kind(trained_betas=betas, num_train_timesteps=len(betas), **common)


def betas_of(alphas_cumprod: Tensor) -> list[float]:
    """Float32 betas whose cumulated product is `alphas_cumprod` [N] to a few 1e-8.

    Each beta makes up for the rounding of those before it.
    """
    betas, reached = [], 1.0
    for power in alphas_cumprod.double().tolist():
        beta = float(np.float32(1 - power / reached))
        reached *= float(np.float32(1) - np.float32(beta))
        betas.append(beta)
    return betas


# Flow matching


@dataclass(frozen=True)
class FlowTimes:
    """Where a flow student stops: shifted, even times of `trained` timesteps, or others on such a curve.

    A pipeline either hands its scheduler even sigmas, and a static shift does the rest for every count; or it lets
    the scheduler spread them, which shifts twice and ends next to the data. There the shift that is wanted is reached
    through another shift s and an end: all of these are Moebius maps of i / n.

    Args:
        shift: shift of even times.
        trained: timesteps.
        moved: process times of the stops, where they are not the shifted even ones.
    """

    shift: float
    trained: int = 1000
    moved: tuple[float, ...] | None = None

    def family(self, *, stochastic: bool) -> Family:
        def schedulers(n: int) -> list[Any]:
            handed = [self._handed(n, stochastic)]
            return handed if n == 1 else [*handed, *self._spread(n, stochastic)]

        def nearby(n: int, slope: float, offset: float) -> Iterator[Family]:
            for moved in held_times(self.times(n), slope, offset):
                yield replace(self, moved=moved).family(stochastic=stochastic)

        return Family(schedulers, lambda n: [self.trained * t for t in self.times(n)], nearby=nearby)

    def times(self, n: int) -> tuple[float, ...]:
        """The process times of n stops."""
        return self.moved or tuple(even_grid(n, shift=self.shift).tolist())

    def bend(self, n: int) -> float:
        """r such that n >= 2 stops are 1 - c i / (1 - r i): of shifted even times (shift - 1) / (n shift)."""
        return bend_of(self.moved) if self.moved else (self.shift - 1) / (n * self.shift)

    def spread_shift(self, n: int) -> float:
        """s such that n >= 2 spread times, shifted by s twice and stretched, have the wanted curvature; NaN if none.

        Spread times x = i / (n - 1) become 1 - sigma = (1 - end) x (1 - k) / (1 - k x) with
        k = (s - 1)(1 - m) / s, m the smallest shifted time. The wanted ones have k = (n - 1) r.
        With m written out, s - 1 solves a quadratic; its smaller root is the branch through shift 1.
        """
        if n == 2:
            return 1.0
        step = 1 / self.trained
        k = (n - 1) * self.bend(n)
        b = 1 - step - k * (1 + step)
        square = b * b - 4 * step * k * k
        return 1 + 2 * k / (b + math.sqrt(square)) if square >= 0 and b > 0 else math.nan

    def _handed(self, n: int, stochastic: bool) -> FlowMatchEulerDiscreteScheduler:
        if self.moved is None or n == 1:
            return self._scheduler(stochastic, shift=self.shift)
        return self._scheduler(stochastic, shift=1 / (1 - n * self.bend(n)), shift_terminal=self.times(n)[-1])

    def _spread(self, n: int, stochastic: bool) -> list[Any]:
        shift = self.spread_shift(n)
        return [] if math.isnan(shift) else [self._scheduler(stochastic, shift=shift, shift_terminal=self.times(n)[-1])]

    def _scheduler(self, stochastic: bool, **config: Any) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=self.trained, stochastic_sampling=stochastic, use_dynamic_shifting=False, **config
        )


def _own_shift(stock: Any, emitted: Emitted) -> float:
    """The static shift of a teacher, or the one that its pipeline asks for at the present resolution."""
    config = stock.config
    if not config.get("use_dynamic_shifting", False):
        return static_shift(stock)
    plain: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
    open_ended = type(stock).from_config(config, shift_terminal=None)
    with checking(type(stock).__name__, f"its pipeline's call of {_SHIFT_STEPS} steps shows the shift of its times"):
        u, t = (emitted(scheduler, _SHIFT_STEPS)[1] / config.num_train_timesteps for scheduler in (plain, open_ended))
    return float(t * (1 - u) / (u * (1 - t)))


# Variance exploding and TrigFlow


def _edm(stock: StockScheduler, sampler: Sampler) -> Family:
    config = stock.config
    kept = {key: config[key] for key in ("sigma_max", "sigma_data", "prediction_type", "rho")}

    def sigma(i: int, n: int) -> float:
        high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
        return float((high + i / n * (low - high)) ** config.rho)

    return Family(
        lambda n: [EDMEulerScheduler(**kept, sigma_min=sigma(max(n - 1, 1), max(n, 2)), sigma_schedule="karras")],
        lambda n: [0.25 * math.log(sigma(i, n)) for i in range(n)],
        lambda n: _other_sampler(n, sampler, allowed="ode", name="EDM"),
    )


def _consistency(stock: Any, sampler: Sampler) -> Family:
    fine = 1000  # levels of Karras's ramp: any count then ends well above sigma_min

    def wanted(n: int) -> list[float]:
        config = stock.config
        high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
        ramp = [i * (fine // n) / (fine - 1) for i in range(n)]
        return [250 * config.rho * math.log(high + r * (low - high)) for r in ramp]

    return Family(
        lambda n: [type(stock).from_config(stock.config, num_train_timesteps=fine, clip_denoised=False)],
        wanted,
        lambda n: _other_sampler(n, sampler, allowed="renoise", name="consistency"),
    )


def _trig(stock: StockScheduler, sampler: Sampler) -> Family:
    def refuses(n: int) -> str | None:
        if n != len(_SCM_TIMES):
            return "SANA-Sprint's plain call makes 2 steps; any other count must be told intermediate_timesteps=None"
        return _other_sampler(n, sampler, allowed="renoise", name="TrigFlow")

    return Family(lambda n: [SCMScheduler.from_config(stock.config)], lambda n: list(_SCM_TIMES), refuses)


def _other_sampler(n: int, sampler: Sampler, *, allowed: Sampler, name: str) -> str | None:
    """Why a family of one sampler does not serve n steps of another; at one step samplers are the same."""
    if n == 1 or sampler == allowed:
        return None
    return f"{name} schedulers know no other sampler than {allowed}: set student.sampler to {allowed}, or one step"
