"""Proof 3: from a teacher that needs many steps, every objective makes a generator of few, on every process.

  python -m fastgen.proofs.convergence --jobs 8 --out fastgen/proofs/measured.json
  python -m fastgen.proofs.convergence --only dmd2 --process flow --out dmd2.json
  python -m fastgen.proofs.convergence --only --page docs/objectives.md

Writes the sliced Wasserstein distances to the data, means over seeds 0, 1, 2, and the commit that they are of; entries
of others stay as they are. Two samples of the data are 0.02 apart.
"""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import atomic_json
from .bed import PROCESSES, bed_of, distance, generated, integrated, sampler_of
from .check import Check
from .page import commit, put
from .recipes import RECIPES
from .training import Recipe, trained
from .trajectory_recipes import TRAJECTORY_RECIPES

ALL = RECIPES | TRAJECTORY_RECIPES
SEEDS = (0, 1, 2)
SHARE = 0.25
"""Of the teacher's own distance after as many steps: the student's has to be below."""
MEASURED = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Distances:
    """Distances to the data: of the student's samples, of all its steps' landings mixed, of the teacher's samples."""

    last: float
    landings: float
    teacher: float

    @classmethod
    def mean(cls, found: "list[Distances]") -> "Distances":
        rows = [asdict(x) for x in found]
        return cls(**{name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]})


def measured(recipe: Recipe, process: str, *, seed: int) -> Distances:
    """Trains on one process and measures."""
    objective, grid = recipe.objective, recipe.grid
    bed = bed_of(objective, process)
    student = trained(recipe, bed, seed=seed)
    landings = generated(student, bed, grid, sampler_of(objective))
    mixed = torch.cat([x[: len(x) // recipe.steps] for x in landings])
    return Distances(distance(landings[-1], bed), distance(mixed, bed), distance(integrated(bed, grid), bed))


def judged(recipe: Recipe, found: Distances) -> float:
    """The distance that the recipe is judged by."""
    return found.last if recipe.judged == "last" else found.landings


def convergence_checks(recipe: Recipe, process: str) -> list[Check]:
    """Whether the student ends near the data, for seed 0."""
    name = f"convergence/{process}"
    try:
        found = measured(recipe, process, seed=0)
    except UserError as error:
        return [Check(name, True, f"refused: {error}")]
    near, bound = judged(recipe, found), SHARE * found.teacher
    steps = f"{recipe.steps} step{'s' * (recipe.steps > 1)}"
    figures = f"distance {near:.3f} after {steps}, at most {bound:.3f}; the teacher's {found.teacher:.3f}"
    return [Check(name, near < bound, figures)]


def _measured(name: str, process: str, seed: int) -> Distances:
    torch.set_num_threads(1)
    return measured(ALL[name], process, seed=seed)


def rows_of(names: list[str], processes: list[str], *, jobs: int) -> Iterator[tuple[str, str, Distances]]:
    """Recipe, process and mean distances, printed as they come."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        places = [(n, p) for n, p in product(names, processes) if p == "flow" or ALL[n].objective.needs.process is None]
        runs = {place: [pool.submit(_measured, *place, seed) for seed in SEEDS] for place in places}
        for (name, process), futures in runs.items():
            found = Distances.mean([future.result() for future in futures])
            share = judged(ALL[name], found) / found.teacher
            verdict = "" if share < SHARE else f"  above {SHARE}"
            print(f"{name:24} {process:4}  {_line(found)}, share {share:.2f}{verdict}", flush=True)
            yield name, process, found


def markdown(known: dict[str, Any]) -> str:
    """The table of all distances that are known: what the recipe is judged by, its share of the teacher's, commits."""
    lines = [f"| recipe | steps | {' | '.join(PROCESSES)} | commit |", "|---" * (3 + len(PROCESSES)) + "|"]
    for name in [name for name in ALL if name in known]:
        cells = [_cell(ALL[name], known[name].get(process)) for process in PROCESSES]
        commits = dict.fromkeys(row.get("commit", "unknown") for row in known[name].values())
        lines.append(f"| `{name}` | {ALL[name].steps} | {' | '.join(cells)} | {', '.join(commits)} |")
    return "\n".join(lines)


def _cell(recipe: Recipe, row: dict[str, Any] | None) -> str:
    return f"{row[recipe.judged]:.3f} ({row[recipe.judged] / row['teacher']:.2f})" if row else ""


def _line(found: Distances) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in asdict(found).items())


def main() -> None:
    """Trains the recipes that were asked for and writes their figures."""
    parser = ArgumentParser(prog="python -m fastgen.proofs.convergence", description=__doc__)
    parser.formatter_class = partial(RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--only", nargs="*", choices=ALL, default=list(ALL), metavar="NAME", help="recipes; or none")
    parser.add_argument("--process", nargs="+", choices=PROCESSES, default=list(PROCESSES), help="default: all")
    parser.add_argument("--out", type=Path, default=MEASURED, metavar="FILE.json", help="default: the package's own")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="puts the table of all into this page")
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    made = commit()  # of the tree before anything is written into it
    for name, process, found in rows_of(options.only, options.process, jobs=options.jobs):
        known.setdefault(name, {})[process] = asdict(found) | {"commit": made}
        atomic_json(options.out, known)
    if options.page:
        put(options.page, "convergence", markdown(known))


if __name__ == "__main__":
    main()
