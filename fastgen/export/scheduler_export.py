"""The scheduler that a stock pipeline will run a student with, chosen before training by what it emits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np

from ..errors import UserError, warn
from ..models.pipelines.refusal import cause
from ..models.pipelines.stock_pipeline import StockScheduler
from ..models.walk import Sampler
from .held import NetworkTimes
from .stock_schedulers import Emitted, Family, family_of

TOLERANCE = 1e-3  # largest error of a scheduler timestep
_USUAL = (1, 2, 3, 4, 8)
_TRIED = 12  # sets of nearby stops that are tried


@dataclass(frozen=True)
class SchedulerExport:
    """A scheduler and the step counts that it serves.

    Args:
        steps: step counts.
        scheduler: a stock scheduler, configured.
        folder: place of its export below the export's own folder; empty for that folder itself.
    """

    steps: tuple[int, ...]
    scheduler: StockScheduler
    folder: str = ""


def scheduler_exports(
    stock: StockScheduler,
    steps: Sequence[int],
    *,
    sampler: Sampler,
    emitted: Emitted,
    shift: float | None = None,
    network_times: NetworkTimes | None = None,
) -> list[SchedulerExport]:
    """Stock schedulers that do, for each declared step count, exactly what the student will be trained for.

    One schedule where one configuration is right for every count, else one for each count. What decides is where the
    stock pipeline's own call really stops. A flow whose pipeline in half precision rounds what it tells its network
    gets stops nearby that are not rounded, or a warning where there are none.

    Args:
        stock: the teacher's scheduler.
        steps: declared step counts.
        sampler: renoise (predict x0, add fresh noise) or ode (deterministic).
        emitted: (scheduler, n) -> scheduler timesteps at which the pipeline's call of n steps stops under it.
        shift: shift of a flow's times (SD3, arXiv:2403.03206, eq. 23); None for the teacher's own.
        network_times: what the network is told of a flow's times; None where half precision does not matter.

    Raises:
        UserError: no stock scheduler does that for the process, the sampler or some count; names the counts that work.
    """

    @cache
    def fault(scheduler: Any, n: int) -> str | None:
        return _fault(family, emitted, scheduler, n)

    of = partial(family_of, stock, emitted=emitted, shift=shift)
    family = of(sampler)
    common = (s for s in family.schedulers(max(steps)) if all(fault(s, n) is None for n in steps))
    one = next(common, None)
    chosen = {n: _alone(family, fault, n) if one is None else one for n in steps}
    refused = {n: why for n, why in chosen.items() if isinstance(why, str)}
    if refused:
        other: Sampler = "ode" if sampler == "renoise" else "renoise"
        raise UserError(_refusal(stock, sampler, refused, _remedy(family, partial(of, other), emitted, other)))
    if network_times is not None:
        chosen = {n: _held(family, emitted, network_times, scheduler, n) for n, scheduler in chosen.items()}
    if len({id(scheduler) for scheduler in chosen.values()}) == 1:
        return [SchedulerExport(tuple(steps), chosen[steps[0]])]
    return [SchedulerExport((n,), scheduler, f"{n}step") for n, scheduler in chosen.items()]


def _held(family: Family, emitted: Emitted, times: NetworkTimes, scheduler: Any, n: int) -> Any:
    """That scheduler or, where half precision would round its times, one that stops nearby at times that it holds."""
    lost = times.lost(scheduler, n)
    if not lost:
        return scheduler
    for moved in islice(family.nearby(n, times.slope, times.offset), _TRIED):
        for other in moved.schedulers(n):
            if _fault(moved, emitted, other, n) is None and not times.lost(other, n):
                return other
    warn(
        f"the stock pipeline in half precision tells its network times up to {lost:.1g} off, and no {n} stops nearby "
        "are held exactly: sample this student in float32, or declare fewer steps (student.steps)"
    )
    return scheduler


def _alone(family: Family, fault: Callable[[Any, int], str | None], n: int) -> Any:
    """A scheduler for that count alone, or the reason why there is none."""
    why = "no stock scheduler samples so"
    for scheduler in family.schedulers(n):
        reason = fault(scheduler, n)
        if reason is None:
            return scheduler
        why = reason
    return why


def _fault(family: Family, emitted: Emitted, scheduler: StockScheduler, n: int) -> str | None:
    """Why that scheduler does not serve n steps; None if it does."""
    refusal = family.refuses(n)
    if refusal is not None:
        return refusal
    try:
        with np.errstate(invalid="ignore", divide="ignore"):  # an end of the times divides by 0 at one step
            times = emitted(scheduler, n)
    except Exception as error:
        return f"the pipeline's own call fails: {cause(error)}"
    wanted = family.wanted(n)
    if len(times) != n:
        return f"the pipeline stops {len(times)} times instead of {n}"
    worst = max(abs(t - w) for t, w in zip(times, wanted, strict=True))
    if worst <= TOLERANCE:
        return None
    shown = ", ".join(f"{t:g}" for t in times)
    return f"the pipeline stops at {shown} instead of {', '.join(f'{w:g}' for w in wanted)}"


def _remedy(family: Family, other: Callable[[], Family], emitted: Emitted, sampler: Sampler) -> str:
    """What can be served instead, by trial: other step counts, or another sampler, or nothing of this pipeline."""
    served = _served(family, emitted)
    if served:
        return f"In student.steps declare some of {', '.join(map(str, served))}"
    try:
        served = _served(other(), emitted)
    except UserError:
        served = []
    if served:
        return f"Set student.sampler to {sampler}, which can be served at {', '.join(map(str, served))} steps"
    return (
        f"Neither sampler can be served at any of {', '.join(map(str, _USUAL))} steps: use a pipeline class whose call "
        "leaves its times to its scheduler"
    )


def _served(family: Family, emitted: Emitted) -> list[int]:
    return [n for n in _USUAL if not isinstance(_alone(family, partial(_fault, family, emitted), n), str)]


def _refusal(stock: StockScheduler, sampler: Sampler, refused: dict[int, str], remedy: str) -> str:
    reasons = "; ".join(f"{n} ({why})" for n, why in refused.items())
    return (
        f"no stock scheduler can serve these step counts of a {type(stock).__name__} pipeline with sampler "
        f"{sampler}: {reasons}. {remedy}"
    )
