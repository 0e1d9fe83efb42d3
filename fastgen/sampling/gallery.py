"""Draw an order of images into a folder: one lossless PNG per image, a grid, and a record of every image."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import check_writable, named
from ..errors import UserError
from ..files import atomic_json
from ..models.pipelines import arguments
from . import pictures, stock
from .order import Order, Prepared, prepared

_GRID_LIMIT = 100
_GRID_PIXELS = 64  # images below this size are magnified in the grid
_GRID = "grid.png"
_RECORD = "samples.json"


@dataclass(frozen=True)
class ImageRecord:
    """How one image can be drawn again, as the pipeline was really told; guidance None is its own default.

    Attributes:
        flags: what the pipeline's own checkers say of it, such as nsfw_content_detected: such a picture is black.
    """

    file: str
    seed: int
    label: int | None
    prompt: str | None
    negative_prompt: str | None
    steps: int | None
    guidance: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """The content of samples.json; `arguments` of the pipeline's call and the size are those of every image.

    Attributes:
        weights: what the denoisers' layers were rounded to, None where they were not.
        compiled: whether the denoisers' blocks were.
    """

    pipeline: str
    pipeline_class: str
    dtype: str
    weights: str | None
    compiled: bool
    arguments: Mapping[str, Any]
    height: int
    width: int
    images: tuple[ImageRecord, ...]

    @property
    def flagged(self) -> int:
        """How many images the pipeline's own checkers flagged."""
        return sum(bool(image.flags) for image in self.images)


@dataclass(frozen=True)
class Written:
    """What was drawn: the flags of each sample, and the size in pixels of all."""

    flags: Sequence[tuple[str, ...]]
    height: int
    width: int


def fill(order: Order, warn: Callable[[str], None]) -> Record:
    """Draw the images of an order into its folder; `warn` is told what is allowed but unwise.

    Raises:
        UserError: files in the way, no such pipeline, or an order that the pipeline cannot take.
    """
    check_writable(order.out, "--out")
    _refuse_overwriting(order)
    ready = prepared(order, warn)
    with named(order.out):
        written = _write(ready.drawn(), order.out)
    record = _record(ready, written)
    for name, size in (("height", record.height), ("width", record.width)):
        if getattr(order.asked, name) not in (None, size):
            warn(f"{name} {getattr(order.asked, name)} was asked for, but its pictures have {size}.")
    atomic_json(order.out / _RECORD, asdict(record))
    return record


def _record(ready: Prepared, written: Written) -> Record:
    order, pipe, request, call = ready.order, ready.pipe, ready.request, ready.call
    images = [
        ImageRecord(
            file=pictures.image_name(i),
            seed=seed,
            label=request.labels[i] if request.labels else None,
            prompt=request.prompts[i] if request.prompts else None,
            negative_prompt=call.negative_prompt,
            steps=call.steps or arguments.default_steps(pipe),
            guidance=call.guidance,
            flags=written.flags[i],
        )
        for i, seed in enumerate(request.seeds)
    ]
    return Record(
        pipeline=order.pipeline,
        pipeline_class=type(pipe).__name__,
        dtype=order.dtype,
        weights=order.faster.weights,
        compiled=order.faster.compile,
        arguments=dict(call.arguments),
        height=written.height,
        width=written.width,
        images=tuple(images),
    )


def _refuse_overwriting(order: Order) -> None:
    names = [*map(pictures.image_name, range(order.count)), _GRID, _RECORD]
    taken = [name for name in names if (order.out / name).exists()]
    if taken and not order.overwrite:
        raise UserError(
            f"{order.out} already holds {len(taken)} of the files to be written, such as {taken[0]}. Choose "
            "another folder with --out, or replace them with --overwrite."
        )


def _write(batches: Iterable[stock.Drawn], out: Path) -> Written:
    """One PNG per sample as the batches come, then the grid of the first ones."""
    out.mkdir(parents=True, exist_ok=True)
    shown: list[Tensor] = []
    flags: list[tuple[str, ...]] = []
    for batch in batches:
        pictures.save_images(batch.images, out, len(flags))
        shown += batch.pictures[: max(0, _GRID_LIMIT - len(flags))]
        flags += batch.flags
    scale = max(1, _GRID_PIXELS // shown[0].shape[-1])
    overview = pictures.magnified(torch.stack(shown), scale)
    pictures.grid(overview, columns=math.ceil(math.sqrt(len(shown)))).save(out / _GRID)
    height, width = shown[0].shape[-2:]
    return Written(flags, height, width)
