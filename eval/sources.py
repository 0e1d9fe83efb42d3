"""Where the images of a report's row come from: files, or a stock pipeline sampled on the fly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fastgen.data.prompts import PromptFile
from fastgen.errors import UserError
from fastgen.models import loading
from fastgen.models.arguments import conditioning_kind, default_steps, draw_labels, real_classes
from fastgen.notes import Notes
from fastgen.sampling import stock

from .costs import Costs
from .images import ImageBatch, ImageSet, image_batches, open_images


@dataclass(frozen=True)
class Origin:
    """How the images of a row were made; what does not apply is None.

    Attributes:
        steps: sampler steps.
        nfe: denoiser calls per image, a guidance pair counted as 2.
        seconds_per_image: median over batches, model loading and feature extraction left out.
    """

    path: str
    steps: int | None = None
    guidance: float | None = None
    first_seed: int | None = None
    dtype: str | None = None
    nfe: float | None = None
    seconds_per_image: float | None = None


class Source(Protocol):
    """Images, and, once they have been drawn, how they were made."""

    @property
    def title(self) -> str: ...

    def batches(self) -> Iterator[ImageBatch]: ...

    def origin(self) -> Origin: ...


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is alike for every row of a report.

    Attributes:
        num: images per row.
        seed: image i uses seed + i.
        mixed_sizes: whether image files may differ in size.
    """

    num: int
    seed: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    prompts: Path | None
    mixed_sizes: bool = False


@dataclass(frozen=True)
class FileSource:
    """The first images of a folder or parquet file."""

    path: Path
    draw: Draw

    @property
    def title(self) -> str:
        return self.path.name

    def batches(self) -> Iterator[ImageBatch]:
        draw = self.draw
        return image_batches(open_images(self.path), draw.batch_size, limit=draw.num, mixed_sizes=draw.mixed_sizes)

    def origin(self) -> Origin:
        return Origin(str(self.path))


@dataclass(frozen=True, eq=False)
class PipelineSource:
    """A loaded pipeline at one step count; classes and prompts are taken in turn."""

    path: str
    pipe: DiffusionPipeline
    classes: range
    steps: int | None
    guidance: float | None
    draw: Draw
    _costs: Costs = field(default_factory=Costs)

    @property
    def title(self) -> str:
        name = Path(self.path).name
        return name if self.steps is None else f"{name}, {self.steps} steps"

    def batches(self) -> Iterator[ImageBatch]:
        draw = self.draw
        labels = draw_labels(self.classes, draw.num) if self.classes else None
        drawn = stock.generate(
            self.pipe,
            seeds=range(draw.seed, draw.seed + draw.num),
            steps=self.steps,
            labels=labels,
            prompts=_cycled_prompts(draw) if conditioning_kind(self.pipe) == "prompt" else None,
            guidance=self.guidance,
            batch_size=draw.batch_size,
            progress=False,
        )
        start = 0
        with self._costs.counting(self.pipe):
            for images in self._costs.timing(drawn):
                part = slice(start, start + len(images))
                yield ImageBatch(_to_bytes(images), torch.tensor(labels[part]) if labels else None)
                start += len(images)

    def origin(self) -> Origin:
        return Origin(
            path=self.path,
            steps=self.steps,
            guidance=self.guidance,
            first_seed=self.draw.seed,
            dtype=str(self.draw.dtype).removeprefix("torch."),
            nfe=self._costs.nfe,
            seconds_per_image=self._costs.seconds_per_image,
        )


def check_source(path: str, num: int) -> None:
    """Refuses image files that cannot fill a row, before anything slow has been done.

    Raises:
        UserError: no images, or fewer than `num`.
    """
    if not _is_image_set(path):
        return
    images: ImageSet = open_images(Path(path))
    if len(images) < num:
        raise UserError(
            f"{path} has {len(images):,} images, but every row of the report needs {num:,}; rows of different N "
            f"cannot be compared. Add images, or compare everything at --num {len(images)}."
        )


def sources(path: str, draw: Draw, *, steps: Sequence[int] | None, guidance: float | None) -> Iterator[Source]:
    """One source per step count of the pipeline at `path`, or the image files there.

    Args:
        steps: None takes those that a student's notes declare, otherwise the pipeline's default.
        guidance: None takes that of a student's notes, otherwise the pipeline's default.

    Raises:
        UserError: there is neither a pipeline nor images.
    """
    if _is_image_set(path):
        yield FileSource(Path(path), draw)
        return
    folder = loading.locate(path)
    notes = Notes.read(folder)
    pipe = loading.load(folder, device=draw.device, dtype=draw.dtype)
    known = notes.steps if notes else (default_steps(pipe),)
    for count in steps or known:
        yield PipelineSource(
            path=path,
            pipe=pipe,
            classes=real_classes(pipe, notes),
            steps=count,
            guidance=notes.guidance if notes and guidance is None else guidance,
            draw=draw,
        )


def _is_image_set(path: str) -> bool:
    local = Path(path)
    return local.is_file() or (local.is_dir() and not (local / "model_index.json").is_file())


def _cycled_prompts(draw: Draw) -> list[str]:
    if draw.prompts is None:
        raise UserError("A text pipeline is measured on prompts and got none; give a text file of them with --prompts.")
    return list(islice(cycle(PromptFile(draw.prompts).prompts), draw.num))


def _to_bytes(images: Tensor) -> Tensor:
    """float [B, 1 or 3, H, W] in [0, 1] -> uint8 [B, 3, H, W], rounded to the nearest level."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)
