"""Check an objective: closed forms between Gaussians, gradient routing, convergence on a two-dimensional mixture.

  python -m fastgen.proofs.prove dmd2
  python -m fastgen.proofs.prove my_objective.py --process flow
  python -m fastgen.proofs.prove my_objective.py --quick

A file is run as Python code, as any import is; it has to define one objective, a dataclass whose fields all have
defaults. Guidance is set to 1, so that the student's target is the data. One line per check; the exit code is 1 if one
of them fails. Where a check says that an objective has no business there, that is no failure.
"""

import importlib.util
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError, did_you_mean
from ..objectives import OBJECTIVES, Objective, roles_of
from ..objectives.parts.gan import GAN
from ..objectives.parts.guidance import Anti, Fixed, LongShort, Shared, Zero
from ..objectives.parts.solvers import Guidance
from .bed import PROCESSES
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


def main(argv: Sequence[str] | None = None) -> int:
    """Proves the objective that was asked for; returns the exit status."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        objective, recipe = found(options.target)
    except UserError as error:
        print(f"fastgen.proofs.prove: error: {error}", file=sys.stderr)
        return error.exit_code
    print(objective)
    failed = 0
    for check in proved(objective, recipe, options.process, quick=options.quick):
        failed += not check.holds
        print(check, flush=True)
    print(f"{failed} failed" if failed else "all hold")
    return 1 if failed else 0


def found(target: str) -> tuple[Objective, Recipe | None]:
    """The objective of that name or in that file, without guidance, and how to train it.

    Raises:
        UserError: there is none, or it cannot run on the proof bed.
    """
    if target in OBJECTIVES:
        objective = unguided(OBJECTIVES[target]())
        recipe = next((recipe for recipe in ALL.values() if type(recipe.objective) is OBJECTIVES[target]), None)
    elif target.endswith(".py"):
        objective = unguided(_made(_only_class(Path(target)), target))
        recipe = Recipe(objective, steps=objective.needs.steps, shift=SHIFT)
    else:
        hint = did_you_mean(target, OBJECTIVES, otherwise=f"known: {', '.join(OBJECTIVES)}")
        raise UserError(f"there is no objective {target!r}, and it is not a .py file; {hint}")
    _accept(objective)
    return objective, recipe


def unguided(objective: Objective) -> Objective:
    """With w = 1 where it has guidance, and its GAN term from the start."""
    names = {field.name for field in fields(objective)}  # type: ignore[arg-type]
    changed = {"guidance": _at_one(vars(objective)["guidance"])} if "guidance" in names else {}
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
        case Fixed() | Zero() | Anti():
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


def _only_class(file: Path) -> type[Objective]:
    """The objective that a Python file defines."""
    module = _run(file)
    kinds = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__ and _fits(x)]
    if len(kinds) == 1:
        return kinds[0]
    if not kinds:
        raise UserError(
            f"{file} defines no objective: write a frozen dataclass with `cycle`, `needs` and a method `generator`"
        )
    names = ", ".join(kind.__name__ for kind in kinds)
    raise UserError(f"{file} defines several objectives ({names}): leave one per file, import the others")


def _fits(kind: type) -> bool:
    return is_dataclass(kind) and all(hasattr(kind, name) for name in ("cycle", "needs", "generator"))


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"there is no file {file}: give the path of a Python file, or one of {', '.join(OBJECTIVES)}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        raise UserError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m fastgen.proofs.prove", description=__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("target", metavar="NAME-or-file.py", help=f"one of {', '.join(OBJECTIVES)}, or a file")
    parser.add_argument("--process", nargs="+", choices=PROCESSES, default=list(PROCESSES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="without the training of proof 3, which takes the time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
