"""A row of metrics.json: one image set, its figures, and how it was made.

Imports no torch, so that a report is read as fast as any other file.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from .measures.figure import Figure

Role = Literal["real", "teacher", "student"]
Kind = Literal["pipeline", "images", "statistics"]

PART = ConfigDict(allow_inf_nan=False, ser_json_inf_nan="constants", use_attribute_docstrings=True)


@dataclass(frozen=True, config=PART)
class Origin:
    """How the images of a row were made; what does not apply is null, and so is what had no effect."""

    path: str
    """Folder, file or hub id, as it was given."""
    kind: Kind
    """`pipeline`: drawn for this report; `statistics`: of features alone."""
    guidance: float | None = None
    """w of uncond + w (cond - uncond), 1 = none."""
    first_seed: int | None = None
    """Image i has the seed `first_seed + i`, in a further block of seeds `num` more."""
    dtype: str | None = None
    """`autocast`: float32 weights, samples, guidance and scheduler, networks compute in bfloat16."""
    negative_prompt: str | None = None
    """The negative prompt, the same for every image."""
    arguments: Mapping[str, Any] | None = None
    """Arguments of the pipeline's call under its own names: size and guidance."""


@dataclass(frozen=True, config=PART)
class Skipped:
    """An image that was left out, and why."""

    name: str
    """Its path within its folder or archive."""
    reason: str
    """One sentence."""


@dataclass(frozen=True, config=PART)
class Flagged:
    """An image that its pipeline's own checker blackened."""

    image: int
    """Its number."""
    flags: tuple[str, ...]
    """The pipeline's outputs that say so, such as `nsfw_content_detected`."""


@dataclass(frozen=True, config=PART)
class Bill:
    """What drawing the images of a row cost."""

    nfe: float | None
    """Denoiser calls per image, a guidance pair counted as 2; null for a denoiser of unknown name."""
    seconds_per_image: float
    """Median over batches, so that the first one's warm-up does not count; loading and features are left out."""
    images_per_second: float
    """Images drawn per second by all processes together."""
    peak_memory_gib: float | None
    """Largest allocation on the GPU of a process while it drew; null on a CPU."""
    batch_size: int
    """Images drawn at once."""


@dataclass(frozen=True, config=PART)
class Band:
    """Level of the frequencies low <= f < high, in dB relative to real images."""

    low: float
    """Lowest frequency, in cycles per image."""
    high: float
    """The frequency that it ends below, in cycles per image."""
    db: float
    """10 log10 of the ratio of powers."""

    @property
    def label(self) -> str:
        return f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True, config=PART)
class Power:
    """Mean power at one frequency."""

    cycles: int
    """The frequency, in cycles per image."""
    power: float
    """|FFT|^2 / (H W) of pixels in [0, 1], mean over images, channels and directions."""


@dataclass(frozen=True, config=PART)
class Levels:
    """The power spectrum of a row."""

    side: int
    """The images' shorter side in pixels; Nyquist is at half as many cycles."""
    bands: tuple[Band, ...]
    """Levels against the real images; empty for these."""
    radial: tuple[Power, ...]
    """Power at 1, 2 ... cycles per image, for a plot (log-log)."""


@dataclass(frozen=True, config=PART)
class ClassRow:
    """One class of the table."""

    label: int
    """The class that was asked for."""
    name: str
    """The extractor's name of the class where it has these classes, otherwise the number."""
    num: int
    """Images of it."""
    accuracy: float | None
    """Share that is read as asked; null where it was not measured."""
    diversity: float | None
    """Diversity within the class, as in `metrics`; null where it was not measured."""


@dataclass(frozen=True, config=PART)
class PromptRow:
    """One prompt of the table."""

    prompt: str
    """The prompt as the pipeline got it."""
    num: int
    """Images of it."""
    clip_score: float
    """100 times the mean cosine of its images and it."""


@dataclass(frozen=True, config=PART)
class Latency:
    """How long images take that are drawn together."""

    batch_size: int
    """Images of one call."""
    seconds_per_image: float | None
    """Seconds of the second of two calls, on the first process; null where memory did not suffice."""


@dataclass(frozen=True, config=PART)
class Row:
    """One image set of the report."""

    id: str
    """Unique, also the folder of its images: `real`, `held-out`, `teacher-50`, `student-4`; `student` for files."""
    role: Role
    """`real`: the reference, and held-out real images, which are the floor."""
    title: str
    """The row's name for people, such as "teacher, 50 steps"."""
    source: Origin
    """How its images were made."""
    num: int | None
    """Images measured, of several blocks of seeds those of one; null: a statistics file that does not say."""
    metrics: Mapping[str, Figure]
    """Figures, by the names in `figures` of the report."""
    not_measured: Mapping[str, str]
    """Chosen figures that this row lacks, and why."""
    steps: int | None = None
    """Sampler steps."""
    nfe: float | None = None
    """Network calls per image, a guided pair counts two."""
    costs: Bill | None = None
    """null where nothing was drawn."""
    skipped: tuple[Skipped, ...] = ()
    """Left out by `--skip-bad`."""
    flagged: tuple[Flagged, ...] = ()
    """They count in the figures unless `--skip-flagged` leaves them out."""
    spectrum: Levels | None = None
    """null where images differ in size or are small."""
    per_class: tuple[ClassRow, ...] | None = None
    """Classes in the order of labels; null where labels are not known, never empty."""
    per_prompt: tuple[PromptRow, ...] | None = None
    """Prompts from the lowest CLIP score to the highest, of many those at both ends; null without CLIP or prompts."""
    latency: tuple[Latency, ...] = ()
    """Latencies of a pipeline, one for each batch size of `--latency`."""
