"""The report of a digits run: real, teacher and student side by side, as a table, a picture and metrics.json."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastgen.data.digits import SIDE, from_canvas
from fastgen.data.pixels import to_uint8
from fastgen.sampling.pictures import labelled_rows
from fastgen.sampling.sampler import SAMPLES_AT_ONCE

from ..collect import Seen
from ..measures.figure import Figure
from ..metrics_json import About, Gallery, Protocol, Provenance, RealImages, Report
from ..page import html
from ..provenance import circumstances
from ..report.showcase import STRIP, Showcase
from ..rows import Bill, Origin, Role, Row
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
HALF = "real half against real half"
EXTRACTOR = f"{PIXELS} pixels of 8x8 digits; {NEIGHBOURS} nearest neighbours read them"
REAL = Origin("scikit-learn load_digits", "images")
FIGURES: Mapping[str, About] = {
    "frechet": About("Frechet", "lower", paper="Heusel et al. 2017, 1706.08500, on pixels"),
    "accuracy": About("accuracy", "higher"),
    "diversity": About("diversity", "one"),
}


@dataclass(frozen=True)
class DigitsSource:
    """A way to draw digits: labels [n] to canvases [n, 1, 16, 16] in [-1, 1], image i with seed i.

    Attributes:
        nfe: network calls per image.
        steps: step count of the sampler; None is one call per step.
    """

    draw: Callable[[Tensor], Tensor]
    nfe: int
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class DigitsReport:
    """Rows as every protocol writes them, and where and when they were measured.

    Attributes:
        rows: the real halves, then one per source.
        drawn: digits [1797, 64] in [0, 1] of each source by the id of its row.
        seed: seed of the split into real halves.
    """

    rows: tuple[Row, ...]
    drawn: Mapping[str, Tensor]
    seed: int
    device: torch.device
    started: datetime

    @property
    def picture(self) -> Image.Image:
        """The first digits of each row."""
        titles = {row.id: row.title for row in self.rows}
        first = {titles[row]: digits[:SHOWN] for row, digits in self.drawn.items()}
        shown = {"real": _real_of_each(SHOWN), **first}
        return labelled_rows({name: _images(digits) for name, digits in shown.items()}, 6)

    def table(self) -> str:
        """Plain text, one line per row."""
        head = f"{'':<28}{'Frechet':>9}{'accuracy':>10}{'diversity':>11}{'NFE':>5}{'s/image':>10}"
        return "\n".join([head, *map(_line, self.rows)])

    def file(self, gallery: Gallery | None) -> Report:
        """What metrics.json says."""
        return Report(
            protocol=_PROTOCOL,
            figures=FIGURES,
            rows=(Row("real", "real", "real", REAL, COUNT, {}, {}), *self.rows),
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


def digits_report(sources: Mapping[str, DigitsSource], *, seed: int) -> DigitsReport:
    """Figures of 1,797 class-balanced digits from each source, against the real ones.

    Args:
        sources: title -> source; one whose first word is "teacher" draws for the teacher, any other for the student.
        seed: seed of the split into real halves.
    """
    started, labels = datetime.now(UTC), class_balanced_labels(COUNT)
    rows = [Row("held-out", "real", HALF, REAL, COUNT // 2, _figures(real_halves(seed)), {})]
    drawn, device = dict[str, Tensor](), torch.device("cpu")
    for title, source in sources.items():
        began = time.perf_counter()
        canvases = source.draw(labels)
        seconds, device = (time.perf_counter() - began) / COUNT, canvases.device
        digits = from_canvas(canvases.cpu())
        rows.append(_row(title, source, digits, labels, seconds))
        drawn[rows[-1].id] = digits
    return DigitsReport(tuple(rows), drawn, seed, device, started)


def save(report: DigitsReport, folder: Path) -> None:
    """`digits.png`, `metrics.json`, its images and `report.html` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    report.picture.save(folder / "digits.png")
    report.file(_gallery(report, folder)).write(folder)
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


def _row(title: str, source: DigitsSource, digits: Tensor, labels: Tensor, seconds: float) -> Row:
    role: Role = "teacher" if title.replace(",", " ").split()[0] == "teacher" else "student"
    return Row(
        id=title.replace(",", "").replace(" ", "-"),
        role=role,
        title=title,
        source=Origin(f"digits {role}", "pipeline", first_seed=0, dtype="float32"),
        num=COUNT,
        metrics=_figures(digits_figures(digits, labels)),
        not_measured={},
        steps=source.nfe if source.steps is None else source.steps,
        nfe=source.nfe,
        costs=Bill(source.nfe, seconds, 1 / seconds, None, SAMPLES_AT_ONCE),
        per_class=figures_by_class(digits, labels),
    )


def _figures(found: DigitsFigures) -> dict[str, Figure]:
    return {name: Figure(value) for name, value in asdict(found).items()}


def _line(row: Row) -> str:
    frechet, accuracy, diversity = (row.metrics[name].value for name in FIGURES)
    cost = f"{row.nfe:>5g}{row.costs.seconds_per_image:>10.5f}" if row.costs else f"{'-':>5}{'-':>10}"
    return f"{row.title:<28}{frechet:>9.4f}{accuracy:>10.4f}{diversity:>11.4f}{cost}"


def _gallery(report: DigitsReport, folder: Path) -> Gallery | None:
    """The first digits of every row, the first ones of the class 0, and the nearest real ones, saved as images."""
    showcase, real = Showcase(folder, count=SHOWN, seed=0, classes=()), real_digits().images.float()
    zeros, asked = range(0, STRIP * CLASSES, CLASSES), {"labels": class_balanced_labels(SHOWN).tolist()}
    showcase.add_row("real", _seen(_real_of_each(SHOWN)), None)
    for row, digits in report.drawn.items():
        showcase.add_row(row, _seen(digits[:SHOWN]), real)
        showcase.add_strip(row, {i: _shown(digits[i]) for i in zeros}, asked)
    showcase.add_neighbours(real, _shown)
    return showcase.gallery()


def _seen(digits: Tensor) -> Seen:
    """Digits [N, 64] as a report's images."""
    return Seen(
        count=len(digits),
        moments=None,
        spectrum=None,
        columns={"features": digits.float(), "numbers": torch.arange(len(digits))},
        sizes=frozenset({(SIDE, SIDE)}),
        pictures=dict(enumerate(map(_shown, digits))),
        skipped=(),
    )


def _shown(digit: Tensor) -> Tensor:
    """A digit [64] in [0, 1] as a picture, uint8 [1, 8, 8]."""
    return to_uint8(digit.reshape(1, SIDE, SIDE))


def _real_of_each(count: int) -> Tensor:
    """Real digits [count, 64] of the classes in turn."""
    real = real_digits()
    seen = [int((real.labels == i % CLASSES).nonzero()[i, 0]) for i in range(count)]
    return real.images[seen].float()


def _images(digits: Tensor) -> Tensor:
    return digits.reshape(-1, 1, SIDE, SIDE)
