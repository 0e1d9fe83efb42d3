"""An objective is checked: closed forms between Gaussians, gradient routing, convergence; `fastgen prove`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from ..errors import UserError
from ..objectives import OBJECTIVE_KINDS, Objective, roles_of
from ..objectives.parts.gan import GAN
from ..objectives.parts.guidance_laws import Anti, Entropic, Fixed, LongShort, Shared, Zero
from ..objectives.parts.solvers import Guidance
from .check import Check, attempted
from .convergence import ALL, convergence_checks
from .gaussians import applies, gaussian_checks
from .recipes import SHIFT
from .routing import routing_checks
from .training import Recipe

MISSING = ("lpips", "experts")
"""Needs that the proof bed has no means for."""


def proved(objective: Objective, recipe: Recipe | None, processes: Sequence[str], *, quick: bool) -> Iterator[Check]:
    """Proofs 1 to 3, each check as soon as it is made; without the third if `quick`.

    An objective that needs the linear process is looked at on the flow alone.

    Args:
        objective: what proofs 1 and 2 look at.
        recipe: how it is trained for proof 3, which is left out without.
        processes: names of `PROCESSES`.
    """
    if objective.needs.process == "flow":
        yield Check("processes", True, "the flow alone, on others it asks to be retold (process: flow)")
        processes = ["flow"]
    if applies(objective):
        for process in processes:
            yield from attempted(f"gaussians/{process}", partial(gaussian_checks, objective, process))
    else:
        yield Check("gaussians", True, "left out, no samples are compared: a denoiser cannot be affine at all times")
    yield from attempted("routing", lambda: routing_checks(objective, processes[0], steps=objective.needs.steps))
    if recipe is None:
        yield Check("convergence", True, "left out, it has no recipe in fastgen/proofs/recipes.py")
    elif not quick:
        for process in processes:
            yield from attempted(f"convergence/{process}", partial(convergence_checks, recipe, process))


def found(target: str) -> tuple[Objective, Recipe | None]:
    """The objective of that name, see `Kinds.find`, without guidance, and how to train it.

    Raises:
        UserError: there is none, or it cannot run on the proof bed.
    """
    kind = OBJECTIVE_KINDS.find(target)
    objective = unguided(_made(kind, target))
    if OBJECTIVE_KINDS.is_own(kind):
        recipe = next((recipe for recipe in ALL.values() if type(recipe.objective) is kind), None)
    else:
        recipe = Recipe(objective, steps=objective.needs.steps, shift=SHIFT)
    _accept(objective)
    return objective, recipe


def told(value: Any, usual: Any) -> str:
    """An objective, or a setting of it, with those of its settings that are not as usual."""
    if not is_dataclass(value) or type(value) is not type(usual):
        return repr(value)
    names = [field.name for field in fields(value)]
    changed = {name: now for name in names if (now := vars(value)[name]) != vars(usual)[name]}
    settings = ", ".join(f"{name}={told(now, vars(usual)[name])}" for name, now in changed.items())
    return f"{type(value).__name__}({settings})"


def unguided(objective: Objective) -> Objective:
    """The objective with w = 1 where it has guidance, and its GAN term from the start."""
    names = {field.name for field in fields(objective)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {
        name: _at_one(vars(objective)[name]) for name in ("guidance", "teacher_guidance") if name in names
    }
    if "gan" in names and isinstance(vars(objective)["gan"], GAN):
        changed["gan"] = replace(vars(objective)["gan"], start=0)
    return replace(objective, **changed)  # type: ignore[type-var]


def _at_one(law: Any) -> Any:
    """The guidance law that guides nothing; one of the user's own stays as it is."""
    match law:
        case int() | float():
            return 1.0
        case Shared():
            return replace(law, low=1.0, high=1.0)
        case LongShort():
            return replace(law, scale=1.0)
        case Fixed() | Zero() | Anti() | Entropic():
            return Fixed(1.0)
        case Guidance():
            return Guidance()
        case _:
            return law


def _accept(objective: Objective) -> None:
    """Raises UserError for an objective that the bed has no means for, or that cannot be trained at all."""
    try:
        roles_of(objective)
    except ValueError as error:
        raise UserError(str(error)) from error
    strange = [name for name in MISSING if vars(objective.needs)[name]]
    if strange:
        raise UserError(
            f"{type(objective).__name__} needs {' and '.join(strange)}, which the proof bed does not have: verify it "
            "with settings that do without"
        )


def _made(kind: type[Objective], target: str) -> Objective:
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{kind.__name__} in {target} has no usable defaults ({error}): give every field one"
        ) from error
