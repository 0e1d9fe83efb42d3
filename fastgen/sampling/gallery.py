"""Sample a pipeline into a folder: one lossless PNG per image, a grid, and a record of every image."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..errors import UserError
from ..files import atomic_json
from ..models import arguments, loading
from ..notes import Notes
from . import pictures, stock

T = TypeVar("T")

_DEFAULT_NUM = 16
_GRID_LIMIT = 100
_GRID_PIXELS = 64  # images below this size are magnified in the grid
_GRID = "grid.png"
_RECORD = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a user asks for; None leaves a choice to the student's notes, then to the pipeline.

    Attributes:
        pipeline: a stock folder or hub id.
        num: images; None is one per label or prompt. Labels and prompts are cycled.
        seed: image i uses seed + i.
        guidance: w of uncond + w (cond - uncond), 1 = none.
        device: "auto" or a torch device.
    """

    pipeline: str
    out: Path
    num: int | None = None
    seed: int = 0
    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 16
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    overwrite: bool = False

    @property
    def count(self) -> int:
        return self.num or len(self.labels or self.prompts or ()) or _DEFAULT_NUM


@dataclass(frozen=True)
class ImageRecord:
    """How one image can be drawn again; guidance None is the pipeline's own default."""

    file: str
    seed: int
    label: int | None
    prompt: str | None
    steps: int | None
    guidance: float | None


@dataclass(frozen=True)
class Record:
    """The content of samples.json."""

    pipeline: str
    pipeline_class: str
    dtype: str
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True)
class Request:
    """An order settled for one pipeline; labels and prompts are as long as seeds, or None."""

    seeds: Sequence[int]
    labels: Sequence[int] | None
    prompts: Sequence[str] | None
    steps: int | None
    guidance: float | None


def fill(order: Order, warn: Callable[[str], None]) -> Record:
    """Draw the images of an order into its folder; `warn` is told what is allowed but unwise.

    Raises:
        UserError: files in the way, no such pipeline, or an order that the pipeline cannot take.
    """
    _refuse_overwriting(order)
    folder = loading.locate(order.pipeline)
    notes = Notes.read(folder)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if order.device == "auto" else order.device
    pipe = loading.load(folder, device=device, dtype=getattr(torch, order.dtype))
    if notes and order.steps and order.steps not in notes.steps:
        warn(
            f"{order.steps} steps were asked for, but this student was trained for "
            f"{', '.join(map(str, notes.steps))}; images at other step counts are usually worse."
        )
    request = _settle(order, pipe=pipe, notes=notes)
    _write(stock.generate(pipe, **vars(request), batch_size=order.batch_size), order.out)
    record = _record(order, request, pipe)
    atomic_json(order.out / _RECORD, asdict(record))
    return record


def _settle(order: Order, *, pipe: DiffusionPipeline, notes: Notes | None) -> Request:
    return Request(
        seeds=range(order.seed, order.seed + order.count),
        labels=_labels(order, pipe=pipe, notes=notes),
        prompts=None if order.prompts is None else _cycled(order.prompts, order.count),
        steps=notes.steps[0] if notes and order.steps is None else order.steps,
        guidance=notes.guidance if notes and order.guidance is None else order.guidance,
    )


def _record(order: Order, request: Request, pipe: DiffusionPipeline) -> Record:
    images = [
        ImageRecord(
            file=pictures.image_name(i),
            seed=seed,
            label=request.labels[i] if request.labels else None,
            prompt=request.prompts[i] if request.prompts else None,
            steps=request.steps or arguments.default_steps(pipe),
            guidance=request.guidance,
        )
        for i, seed in enumerate(request.seeds)
    ]
    return Record(order.pipeline, type(pipe).__name__, order.dtype, tuple(images))


def _labels(order: Order, *, pipe: DiffusionPipeline, notes: Notes | None) -> list[int] | None:
    """The label of each image; drawn from the real classes where none was asked for."""
    classes = arguments.real_classes(pipe, notes)
    if order.labels is None:
        return arguments.draw_labels(classes, order.count) if classes else None
    if classes:
        arguments.check_labels(order.labels, classes)
    return _cycled(order.labels, order.count)


def _cycled(values: Sequence[T], count: int) -> list[T]:
    return list(islice(cycle(values), count))


def _refuse_overwriting(order: Order) -> None:
    names = [*map(pictures.image_name, range(order.count)), _GRID, _RECORD]
    taken = [name for name in names if (order.out / name).exists()]
    if taken and not order.overwrite:
        raise UserError(
            f"{order.out} already holds {len(taken)} of the files to be written, such as {taken[0]}. Choose "
            "another folder with --out, or replace them with --overwrite."
        )


def _write(batches: Iterable[Tensor], out: Path) -> None:
    """One PNG per image as the batches come, then the grid of the first ones."""
    out.mkdir(parents=True, exist_ok=True)
    shown: list[Tensor] = []
    written = 0
    for images in batches:
        pictures.save_images(images, out, written)
        shown += images[: max(0, _GRID_LIMIT - written)]
        written += len(images)
    scale = max(1, _GRID_PIXELS // shown[0].shape[-1])
    overview = pictures.magnified(torch.stack(shown), scale)
    pictures.grid(overview, columns=math.ceil(math.sqrt(len(shown)))).save(out / _GRID)
