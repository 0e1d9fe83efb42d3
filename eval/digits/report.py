"""The report of a digits run: real, teacher and student side by side, as a table, a picture and metrics.json."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastgen.data.digits import SIDE, from_canvas
from fastgen.sampling.pictures import labelled_rows, picture
from fastgen.sampling.sampler import AT_ONCE

from ..measures.figure import Figure
from ..measures.manifold import nearest
from ..metrics_json import About, Gallery, Item, Near, Protocol, Provenance, RealImages, Strip
from ..metrics_json import Report as FullReport
from ..page import html
from ..provenance import circumstances
from ..rows import Bill, Origin, Role
from ..rows import Row as FullRow
from .figures import (
    CLASSES,
    NEIGHBOURS,
    PIXELS,
    DigitsFigures,
    class_balanced_labels,
    digits_figures,
    figures_by_class,
    real_digits,
    real_halves,
)

COUNT = 1797
SHOWN = 20
STRIP = 8
HALF = "real half against real half"
EXTRACTOR = f"{PIXELS} pixels of 8x8 digits; {NEIGHBOURS} nearest neighbours read them"
REAL = Origin("scikit-learn load_digits", "images")
FIGURES: Mapping[str, About] = {
    "frechet": About("Frechet", "lower", paper="Heusel et al. 2017, 1706.08500, on pixels"),
    "accuracy": About("accuracy", "higher"),
    "diversity": About("diversity", "one"),
}


@dataclass(frozen=True)
class Sampler:
    """A way to draw digits: labels [n] to canvases [n, 1, 16, 16] in [-1, 1], image i with seed i.

    Attributes:
        nfe: network calls per image.
        steps: sampler steps; None is one call per step.
    """

    draw: Callable[[Tensor], Tensor]
    nfe: int
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table; what only generated digits [1797, 64] have is None for real ones."""

    name: str
    figures: DigitsFigures
    steps: int | None = None
    nfe: int | None = None
    seconds_per_image: float | None = None
    digits: Tensor | None = None

    @property
    def role(self) -> Role:
        """Of real digits, of the teacher's, or of the student's: the first word of the name."""
        first = self.name.replace(",", " ").split()[0]
        return "real" if first == "real" else "teacher" if first == "teacher" else "student"

    @property
    def id(self) -> str:
        return "held-out" if self.role == "real" else self.name.replace(",", "").replace(" ", "-")


@dataclass(frozen=True)
class Report:
    """The rows, and where, when and with which seed of the real halves they were measured."""

    rows: list[Row]
    seed: int
    device: torch.device
    started: datetime

    @property
    def generated(self) -> dict[Row, Tensor]:
        return {row: row.digits for row in self.rows if row.digits is not None}

    @property
    def picture(self) -> Image.Image:
        """The first digits of each row."""
        shown = {"real": _real_of_each(SHOWN), **{row.name: digits[:SHOWN] for row, digits in self.generated.items()}}
        return labelled_rows({name: _images(digits) for name, digits in shown.items()}, 6)

    def table(self) -> str:
        """Plain text, one line per row."""
        lines = [f"{'':<28}{'Frechet':>9}{'accuracy':>10}{'diversity':>11}{'NFE':>5}{'s/image':>10}"]
        for row in self.rows:
            f = row.figures
            cost = (
                f"{row.nfe:>5}{row.seconds_per_image:>10.5f}"
                if row.seconds_per_image is not None
                else f"{'-':>5}{'-':>10}"
            )
            lines.append(f"{row.name:<28}{f.frechet:>9.4f}{f.accuracy:>10.4f}{f.diversity:>11.4f}{cost}")
        return "\n".join(lines)

    def full(self, gallery: Gallery) -> FullReport:
        """As other protocols write it."""
        real = FullRow("real", "real", "real", REAL, COUNT, {}, {})
        return FullReport(
            protocol=_PROTOCOL,
            figures=FIGURES,
            rows=(real, *map(_full, self.rows)),
            gallery=gallery,
            provenance=Provenance(
                reference=RealImages(REAL.path, REAL.kind, COUNT, 0),
                seeds=(0, COUNT - 1),
                prompts=None,
                labels=None,
                processes=1,
                settings={"labels": "0 to 9 in turn", "seed of the real halves": self.seed},
                **circumstances(self.device, self.started),
            ),
        )


def digits_report(samplers: Mapping[str, Sampler], *, seed: int) -> Report:
    """Figures of 1,797 class-balanced digits from each sampler, against the real ones.

    Args:
        samplers: by title; one whose first word is "teacher" draws for the teacher, any other for the student.
        seed: of the split into real halves.
    """
    started, labels = datetime.now(UTC), class_balanced_labels(COUNT)
    rows, device = [Row(HALF, real_halves(seed))], torch.device("cpu")
    for name, sampler in samplers.items():
        began = time.perf_counter()
        canvases = sampler.draw(labels)
        seconds, device = (time.perf_counter() - began) / COUNT, canvases.device
        digits = from_canvas(canvases.cpu())
        steps = sampler.nfe if sampler.steps is None else sampler.steps
        rows.append(Row(name, digits_figures(digits, labels), steps, sampler.nfe, seconds, digits))
    return Report(rows, seed, device, started)


def save(report: Report, folder: Path) -> None:
    """`digits.png`, `metrics.json`, its images and `report.html` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    report.picture.save(folder / "digits.png")
    report.full(_gallery(report, folder)).write(folder)
    html.write(folder)


_PROTOCOL = Protocol(
    name="digits",
    extractor=EXTRACTOR,
    dim=PIXELS,
    resizes=False,
    precision="float32",
    min_images=PIXELS,
    reference_extractor=EXTRACTOR,
    classes=tuple(str(label) for label in range(CLASSES)),
    clip=None,
)


def _full(row: Row) -> FullRow:
    """The row as other protocols write it."""
    figures = {name: Figure(value) for name, value in asdict(row.figures).items()}
    if row.digits is None or row.nfe is None or row.seconds_per_image is None:
        return FullRow(row.id, row.role, row.name, REAL, COUNT // 2, figures, {})
    seconds = row.seconds_per_image
    return FullRow(
        id=row.id,
        role=row.role,
        title=row.name,
        source=Origin(f"digits {row.role}", "pipeline", first_seed=0, dtype="float32"),
        num=COUNT,
        metrics=figures,
        not_measured={},
        steps=row.steps,
        nfe=row.nfe,
        costs=Bill(row.nfe, seconds, 1 / seconds, None, AT_ONCE),
        per_class=figures_by_class(row.digits, class_balanced_labels(COUNT)),
    )


def _gallery(report: Report, folder: Path) -> Gallery:
    """The first digits of every row, the first ones of the class 0, and the nearest real ones, saved as images."""
    zeros = tuple(range(0, STRIP * CLASSES, CLASSES))
    real = {"real": _save(folder, "images/real/{}.png", range(SHOWN), _real_of_each(SHOWN))}
    first = {
        row.id: _save(folder, f"images/{row.id}/{{}}.png", range(SHOWN), digits[:SHOWN])
        for row, digits in report.generated.items()
    }
    alike = {
        row.id: _save(folder, f"images/{row.id}/strip-{{}}.png", zeros, digits[list(zeros)])
        for row, digits in report.generated.items()
    }
    return Gallery(
        items=tuple(Item(seed=i, label=i % CLASSES) for i in range(SHOWN)),
        images=real | first,
        strip=Strip(label=0, seeds=zeros, images=alike),
        neighbours={row.id: _neighbours(folder, digits[:SHOWN]) for row, digits in report.generated.items()},
    )


def _neighbours(folder: Path, digits: Tensor) -> tuple[tuple[Near, ...], ...]:
    real = real_digits().images.float()
    found = nearest(digits.float(), real, 3)
    near = []
    for indices, distances in zip(found.index.tolist(), found.distance.tolist(), strict=True):
        paths = _save(folder, "images/real/neighbour-{}.png", indices, real[indices])
        near.append(tuple(map(Near, indices, distances, paths)))
    return tuple(near)


def _save(folder: Path, path: str, numbers: Sequence[int], digits: Tensor) -> tuple[str, ...]:
    paths = tuple(path.format(number) for number in numbers)
    for image, name in zip(_images(digits), paths, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(image).save(folder / name)
    return paths


def _real_of_each(count: int) -> Tensor:
    """Real digits [count, 64] of the classes in turn."""
    real = real_digits()
    seen = [int((real.labels == i % CLASSES).nonzero()[i, 0]) for i in range(count)]
    return real.images[seen].float()


def _images(digits: Tensor) -> Tensor:
    return digits.reshape(-1, 1, SIDE, SIDE)
