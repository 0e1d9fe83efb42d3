"""Proof 4: which modes of an eight-mode mixture a student finds, and how well it weighs them.

  python -m fastgen.proofs.modes --jobs 8 --out docs/objectives
  python -m fastgen.proofs.modes --only dmd2 sid --process flow --out modes

Writes FOLDER/NAME.png (grey: the teacher's samples after 32 steps, in colour: the student's), and the table into the
page FOLDER.md between its markers as rows come, where those of other recipes stay as they are. What has to be asked for
by class has no row, since the eight modes are of one.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..process import even_grid
from .analytic import Mixture
from .bed import DATA, PROCESSES, SAMPLES, bed_of, distance, generated, integrated, sampler_of
from .convergence import ALL
from .page import commit, put
from .training import trained

SEED, PIXELS, HALF_WIDTH, DRAWN, MANY = 0, 240, 1.5, 3000, 32
GREY, COLOUR = (200, 200, 200), (200, 40, 90)
RECIPES = {name: recipe for name, recipe in ALL.items() if not recipe.objective.needs.instead}
HEADER = (
    "| recipe | steps | modes found | mass error | off all modes | distance | teacher's | commit | |\n"
    + "|---" * 9
    + "|"
)


@dataclass(frozen=True)
class Coverage:
    """How samples cover the modes of a mixture.

    Args:
        modes: how many have at least a fifth of their share within three standard deviations.
        mass_error: total variation between the shares of the modes and the data's, each sample to its nearest mode.
        off: share of samples farther than three standard deviations from every mode.
    """

    modes: int
    mass_error: float
    off: float

    @classmethod
    def of(cls, samples: Tensor, data: Mixture) -> "Coverage":
        """Samples [N, d]; the modes are round."""
        far = torch.cdist(samples.double(), data.means) / data.covariances[:, 0, 0].sqrt()
        nearest, mode = far.min(dim=1)
        inside = nearest < 3
        near_share = _shares(mode[inside], len(data.means)) * inside.double().mean()
        modes = int((near_share >= data.weights / 5).sum())
        error = (_shares(mode, len(data.means)) - data.weights).abs().sum() / 2
        return cls(modes, float(error), float((~inside).double().mean()))


def _shares(mode: Tensor, count: int) -> Tensor:
    return torch.bincount(mode, minlength=count).double() / max(1, len(mode))


@dataclass(frozen=True)
class Row:
    """A recipe's student beside the teacher with as many steps."""

    name: str
    coverage: Coverage
    distance: float
    teacher: float

    def markdown(self, pictures: str, made: str) -> str:
        found, steps = self.coverage, RECIPES[self.name].steps
        figures = f"{found.modes} of 8 | {found.mass_error:.3f} | {found.off:.3f}"
        picture = f"![{self.name}]({pictures}/{self.name}.png)"
        distances = f"{self.distance:.3f} | {self.teacher:.3f}"
        return f"| `{self.name}` | {steps} | {figures} | {distances} | {made} | {picture} |"


def row_of(name: str, process: str, folder: Path) -> Row:
    """Trains a recipe eight times as long as on five modes, draws its picture and measures."""
    torch.set_num_threads(1)
    recipe = replace(RECIPES[name], cycles=8 * RECIPES[name].cycles)
    bed, grid = bed_of(recipe.objective, process, "eight"), recipe.grid
    student = trained(recipe, bed, seed=SEED)
    samples = generated(student, bed, grid, sampler_of(recipe.objective))[-1]
    teacher = integrated(bed, grid)
    drawing(integrated(bed, even_grid(MANY)), samples).save(folder / f"{name}.png", optimize=True)
    return Row(name, Coverage.of(samples, DATA["eight"]), distance(samples, bed), distance(teacher, bed))


def drawing(teacher: Tensor, student: Tensor) -> Image.Image:
    """Both samples [N, 2] as points of a square around the origin, in three colours so that the file is small."""
    canvas = torch.zeros(PIXELS, PIXELS, dtype=torch.uint8)
    for index, points in ((1, teacher), (2, student)):
        places = ((points[:DRAWN] / HALF_WIDTH + 1) / 2 * PIXELS).long()
        places = places[((places >= 0) & (places < PIXELS)).all(dim=1)]
        canvas[PIXELS - 1 - places[:, 1], places[:, 0]] = index
    image = Image.fromarray(canvas.numpy(), mode="P")
    image.putpalette([255, 255, 255, *GREY, *COLOUR])
    return image


def rows_of(names: Sequence[str], process: str, folder: Path, *, jobs: int) -> Iterator[Row]:
    """Rows in the order of the recipes, as they come; pictures go to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(row_of, names, [process] * len(names), [folder] * len(names))


def table(process: str, folder: Path, page: str, rows: dict[str, str]) -> str:
    """The markdown table with its heading: these rows, a page's own of other recipes, and whose rows are missing."""
    known = {name: line for name in RECIPES for line in page.splitlines() if line.endswith(f"/{name}.png) |")} | rows
    command = f"python -m fastgen.proofs.modes --process {process} --out {folder}"
    heading = f"`{command}`, seed {SEED}, {SAMPLES:,} samples, the last step's."
    missing = ", ".join(f"`{name}`" for name in RECIPES if name not in known)
    told = ["", f"Not measured yet: {missing}."] if missing else []
    return "\n".join([heading, "", HEADER, *(known[name] for name in RECIPES if name in known), *told])


def main() -> None:
    """Trains the recipes that were asked for and writes their pictures and the table."""
    parser = ArgumentParser(prog="python -m fastgen.proofs.modes", description=__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME", help="recipes")
    parser.add_argument("--process", choices=PROCESSES, default="flow", help="default: flow")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the pictures and the table")
    options = parser.parse_args()
    page, made = options.out.with_suffix(".md"), commit()  # of the tree before anything is written into it
    for row in rows_of(options.only, options.process, options.out, jobs=options.jobs):
        line = row.markdown(options.out.name, made)
        print(line, flush=True)
        known = page.read_text() if page.exists() else ""
        put(page, "modes", table(options.process, options.out, known, {row.name: line}))


if __name__ == "__main__":
    main()
