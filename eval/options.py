"""What a user asks an evaluation for; imports nothing heavy, so that --help stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Colour = tuple[float, float, float]
"""One value per RGB channel."""

Kernel = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Side:
    """What is measured: a path as in `Options`, and how it is sampled if it is a pipeline."""

    role: Literal["teacher", "student"]
    path: str
    steps: tuple[int, ...] | None
    guidance: float | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one evaluation, under the names of the command line.

    Attributes:
        student, teacher: a pipeline folder, a hub id, a folder of images or a parquet file.
        reference: a folder of images, a parquet file or statistics (.npz).
        real_images: real images for the power spectrum where `reference` is a statistics file.
        steps: of the student; None takes those it was trained for.
        guidance: w of uncond + w (cond - uncond), 1 = none; None leaves it to the student's notes and the pipeline.
        num: images per row of the report.
        seed: image i is drawn with seed + i.
        device: "auto" or a torch device.
    """

    reference: Path
    extractor: Path
    student: str | None = None
    teacher: str | None = None
    real_images: Path | None = None
    extractor_size: int | None = None
    extractor_range: tuple[float, float] | None = None
    extractor_mean: Colour | None = None
    extractor_std: Colour | None = None
    extractor_kernel: Kernel = "bilinear"
    extractor_antialias: bool = False
    steps: tuple[int, ...] | None = None
    teacher_steps: tuple[int, ...] = (50,)
    guidance: float | None = None
    teacher_guidance: float | None = None
    prompts: Path | None = None
    num: int = 10_000
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    allow_small: bool = False
    save_stats: Path | None = None
    out: Path = Path("report")
    overwrite: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that were asked for, in the order of the report."""
        sides = []
        if self.teacher is not None:
            sides.append(Side("teacher", self.teacher, self.teacher_steps, self.teacher_guidance))
        if self.student is not None:
            sides.append(Side("student", self.student, self.steps, self.guidance))
        return tuple(sides)

    @property
    def reference_is_statistics(self) -> bool:
        return self.reference.suffix == ".npz"
