"""The table and the picture of a digits run: real, teacher and student side by side."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fastgen.data.digits import from_canvas
from fastgen.sampling.pictures import labelled_rows

from .digits import DigitsFigures, class_balanced_labels, digits_figures, real_digits, real_halves

COUNT = 1797
SHOWN = 20


@dataclass(frozen=True)
class Sampler:
    """A way to draw digits: labels [n] and a seed to canvases [n, 1, 16, 16] in [-1, 1], and its network calls."""

    draw: Callable[[Tensor], Tensor]
    nfe: int


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    figures: DigitsFigures
    nfe: int | None = None
    seconds_per_image: float | None = None


@dataclass(frozen=True)
class Report:
    """The rows, and a picture with the first digits of each."""

    rows: list[Row]
    picture: Image.Image

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

    def as_json(self) -> dict[str, Any]:
        return {"protocol": "digits", "count": COUNT, "rows": [asdict(row) for row in self.rows]}


def digits_report(samplers: Mapping[str, Sampler], *, seed: int) -> Report:
    """Figures of 1,797 class-balanced digits from each sampler, against the real ones."""
    labels = class_balanced_labels(COUNT)
    rows = [Row("real half against real half", real_halves(seed))]
    real = real_digits()
    firsts = [int((real.labels == label).nonzero()[i, 0]) for i, label in enumerate(labels[:SHOWN].tolist())]
    shown = {"real": real.images[firsts].reshape(-1, 1, 8, 8).float()}
    for name, sampler in samplers.items():
        started = time.perf_counter()
        canvases = sampler.draw(labels)
        seconds = (time.perf_counter() - started) / COUNT
        digits = from_canvas(canvases.cpu())
        rows.append(Row(name, digits_figures(digits, labels), sampler.nfe, seconds))
        shown[name] = digits[:SHOWN].reshape(-1, 1, 8, 8)
    return Report(rows, labelled_rows(shown, 6))


def save(report: Report, folder: Path) -> None:
    """`digits.png` and `metrics.json` in the folder."""
    from fastgen.files import atomic_json

    folder.mkdir(parents=True, exist_ok=True)
    report.picture.save(folder / "digits.png")
    atomic_json(folder / "metrics.json", report.as_json())
