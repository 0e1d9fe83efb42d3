"""Derivatives of networks along a trajectory: exact forward mode where a network allows it, else finite differences."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import UserError
from ...models.contract import Denoiser
from ...models.regions import as_written
from ...process import Latent, Process, Time, pad_like
from .needs import Needs

log = logging.getLogger(__name__)

Curve = Callable[[Latent, Tensor], Latent]
"""(x, clock [B]) -> [B, ...], made of calls of one denoiser."""

STEP = {torch.float64: 1e-4}
SINGLE_STEP = 2e-4
"""Step of central differences in fp32: a network that embeds a thousandfold time turns within a thousandth of it.

In bf16 the rounding errors of two calls are larger than their difference.
"""
LOST = 0.5
"""Finite differences over h and 2 h that are apart by this share of them measure rounding."""


@dataclass(frozen=True)
class Derivative:
    """A function's value and its rate of change along (dx, 1), [B, ...] each; constants."""

    value: Latent
    rate: Latent


Method = Callable[[Curve, Process, Latent, Time, Latent, Tensor], Derivative]
_CHOSEN: "WeakKeyDictionary[Denoiser, Method]" = WeakKeyDictionary()


def check_step(step: float | None) -> None:
    """Raises ValueError for a step that is none."""
    if step is not None and not 0 < step < 1:
        raise ValueError(
            f"derivative_step is {step:g}: need a step in (0, 1), such as 0.03, or null for exact derivatives"
        )


def needs_fine_times(step: float | None) -> Needs:
    """The needs of a derivative over that step; an exact one (None) compares times as near as can be."""
    return Needs(fine_times=step is None)


def along(
    model: Denoiser,
    curve: Curve,
    x: Latent,
    t: Time,
    dx: Latent,
    *,
    unit: Tensor | None = None,
    step: float | None = None,
) -> Derivative:
    """d curve(x(c), c) / dc at the clock c of t, where x moves at dx per unit of the clock; no graph is kept.

    Where no step is given, the first call of a model decides between forward mode and finite differences, and logs
    which.

    Args:
        model: the denoiser that the curve calls.
        unit: how far the clock runs [B] while the trajectory turns noticeably; 1 by default. Finite differences use a
            small part of it.
        step: that part. The derivative is then the mean over it, in which the fast waves of a network's time
            embedding, and the errors that a student makes in them, cancel.

    Raises:
        UserError: there is no forward mode, and finite differences are lost in rounding.
    """
    process, unit = model.process, torch.ones_like(t) if unit is None else unit
    with torch.no_grad():
        if step is not None:
            return finite_differences(curve, process, x, t, dx, unit, step=step)
        if model not in _CHOSEN:
            _CHOSEN[model] = _choose(model, curve, x, t, dx, unit)
        return _CHOSEN[model](curve, process, x, t, dx, unit)


def forward_mode(curve: Curve, process: Process, x: Latent, t: Time, dx: Latent, unit: Tensor) -> Derivative:
    """Exact; attention runs as plain matrix products, which alone have forward derivatives.

    Raises:
        RuntimeError, NotImplementedError: a layer of the network has none.
    """
    clock = process.clock(t)
    with as_written(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(curve, (x, clock), (dx, torch.ones_like(clock)))
    torch.clear_autocast_cache()
    return Derivative(found[0].detach(), found[1].detach())


def finite_differences(
    curve: Curve, process: Process, x: Latent, t: Time, dx: Latent, unit: Tensor, *, step: float | None = None
) -> Derivative:
    """Central differences of second order over +-step units; one-sided where the clock ends. Three calls."""
    clock, reach = process.clock(t), (_smallest(x) if step is None else step) * unit
    ends = process.clock(torch.stack([torch.zeros_like(t), torch.ones_like(t)]))
    after, before = torch.minimum(clock + reach, ends[1]), torch.maximum(clock - reach, ends[0])
    with torch.no_grad():
        values = [curve((x + pad_like(c - clock, x) * dx).to(x.dtype), c) for c in (before, clock, after)]
    rate = (values[2] - values[0]) / pad_like(after - before, x)
    return Derivative(values[1], rate.to(x.dtype))


def _choose(model: Denoiser, curve: Curve, x: Latent, t: Time, dx: Latent, unit: Tensor) -> Method:
    try:
        exact = forward_mode(curve, model.process, x, t, dx, unit).rate
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("derivatives by finite differences: forward mode is not possible here (%s)", reason[:160])
        _check_rounding(curve, model.process, x, t, dx, unit)
        return finite_differences
    near = finite_differences(curve, model.process, x, t, dx, unit).rate
    apart = float((exact - near).norm() / exact.norm().clamp(min=1e-12))
    log.info("derivatives by forward mode; finite differences differ by %.1e of them", apart)
    return forward_mode


def _smallest(x: Latent) -> float:
    return STEP.get(x.dtype, SINGLE_STEP)


def _check_rounding(curve: Curve, process: Process, x: Latent, t: Time, dx: Latent, unit: Tensor) -> None:
    near, wide = (
        finite_differences(curve, process, x, t, dx, unit, step=times * _smallest(x)).rate for times in (1, 2)
    )
    apart = float((near - wide).norm() / wide.norm().clamp(min=1e-12))
    if apart > LOST:
        raise UserError(
            f"derivatives by finite differences are lost in rounding (over twice the step they change by {apart:.0%}), "
            "and this network has no forward mode: train in fp32 (train.precision), or average over a step "
            "(objective.derivative_step=0.03)"
        )
