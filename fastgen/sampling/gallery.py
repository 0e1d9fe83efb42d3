"""Sample a pipeline into a folder: one lossless PNG per image, a grid, and a record of every image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..disk import check_writable, named
from ..errors import UserError, warn
from ..files import atomic_json
from ..models.pipelines import arguments
from ..models.pipelines.folders import is_lora
from ..models.pipelines.notes import Notes
from ..models.pipelines.opening import Opened
from ..models.pipelines.stock_pipeline import StockPipeline
from . import pictures, stock
from .call import Asked, Settled, settle, warn_of_steps
from .faster import Faster

_DEFAULT_NUM = 16
MOST_SEED = 2**62
_GRID_LIMIT = 100
_GRID_PIXELS = 64  # images below this size are magnified in the grid
_GRID = "grid.png"
_RECORD = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a user asks for; None leaves a choice to the student's notes, then to the pipeline.

    Attributes:
        pipeline: a stock folder or hub id, or the folder of a LoRA student or of several students.
        base, stacked: what a LoRA lies on, where its notes cannot say it; see `Opened`.
        asked: steps, guidance, size ...
        num: images; None is one per label or prompt. Labels and prompts are cycled.
        seed: image i uses seed + i.
        device: "auto" or a torch device.
        faster: what is changed of the denoisers before.

    Raises:
        UserError: no image, a seed that not every generator accepts, or labels or prompts that are no list of some.
    """

    pipeline: str
    out: Path = Path("samples")
    base: str | None = None
    stacked: Sequence[tuple[Path, float | None]] = ()
    asked: Asked = field(default_factory=Asked)
    num: int | None = None
    seed: int = 0
    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    batch_size: int = 16
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    overwrite: bool = False
    faster: Faster = field(default_factory=Faster)

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 1:
            raise UserError(f"the number of images is {self.num}: give at least 1")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"seed is {self.seed}: give a whole number from 0 to 2^62")
        for name, given in (("labels", self.labels), ("prompts", self.prompts)):
            if isinstance(given, str):
                raise UserError(f"{name} is one text, {given!r:.80}: give a list of them")
            if given is not None and not len(given):
                raise UserError(f"{name} is empty: give some, or leave it out")

    @property
    def count(self) -> int:
        return self.num or len(self.labels or self.prompts or ()) or _DEFAULT_NUM


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
class Request:
    """What the images of an order are asked for by; labels and prompts are as long as seeds, or None."""

    seeds: Sequence[int]
    labels: Sequence[int] | None
    prompts: Sequence[str] | None


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
    pipe, request, call = _settled(order, warn)
    with named(order.out):
        written = _write(_drawn(pipe, request, call, order), order.out)
    record = _record(order, request, call, pipe, written)
    for name, size in (("height", record.height), ("width", record.width)):
        if getattr(order.asked, name) not in (None, size):
            warn(f"{name} {getattr(order.asked, name)} was asked for, but its pictures have {size}.")
    atomic_json(order.out / _RECORD, asdict(record))
    return record


def sample(
    pipeline: str | Path,
    *,
    num: int | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    base: str | None = None,
    batch_size: int = 16,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    **asked: Any,
) -> Tensor:
    """Images of a student, or of any other stock pipeline, drawn as `fastgen sample` draws them.

    Args:
        pipeline: a stock folder or hub id, or the folder of a LoRA student or of several students.
        num: images; one per label or prompt where not given. Labels and prompts are cycled.
        seed: image i uses seed + i, whatever the batch size.
        base: what a LoRA lies on, where its notes cannot say it.
        device: "auto" or a torch device.
        asked: steps, guidance, negative_prompt, height, width, frames; what is not given is as the student's notes say.

    Returns:
        [N, C, H, W] in [0, 1], float32 on the CPU; of videos [N, F, C, H, W].

    Raises:
        UserError: no such pipeline, or it cannot take what was asked for.
    """
    order = Order(
        pipeline=str(pipeline),
        base=base,
        asked=Asked(**asked),
        num=num,
        seed=seed,
        labels=labels,
        prompts=prompts,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    pipe, request, call = _settled(order, warn)
    return torch.cat([drawn.images for drawn in _drawn(pipe, request, call, order)])


def _settled(order: Order, warn: Callable[[str], None]) -> tuple[StockPipeline, Request, Settled]:
    """The pipeline of an order, and what its call is really told."""
    opened = Opened(order.pipeline, order.base, order.stacked)
    notes = opened.notes
    device = ("cuda" if torch.cuda.is_available() else "cpu") if order.device == "auto" else order.device
    order.faster.check(dtype=order.dtype, lora=any(is_lora(one.folder) for one in opened.each or (opened,)))
    pipe = opened.load(order.asked.steps, device=device, dtype=getattr(torch, order.dtype))
    order.faster.prepare(pipe, device)
    request = _request(order, pipe=pipe, notes=notes)
    warn_of_steps(notes, order.asked.steps, warn)
    return pipe, request, settle(pipe, notes, order.asked, example=_example(pipe, request), warn=warn)


def _request(order: Order, *, pipe: StockPipeline, notes: Notes | None) -> Request:
    return Request(
        seeds=range(order.seed, order.seed + order.count),
        labels=_labels(order, pipe=pipe, notes=notes),
        prompts=None if order.prompts is None else arguments.in_turn(order.prompts, range(order.count)),
    )


def _example(pipe: StockPipeline, request: Request) -> dict[str, list[Any]]:
    """The call's own arguments for the first image."""
    labels = None if request.labels is None else request.labels[:1]
    prompts = None if request.prompts is None else request.prompts[:1]
    return arguments.conditions(pipe, labels=labels, prompts=prompts)


def _drawn(pipe: StockPipeline, request: Request, call: Settled, order: Order) -> Iterator[stock.Drawn]:
    negative = call.negative_prompt
    return stock.generate(
        pipe,
        seeds=request.seeds,
        labels=request.labels,
        prompts=request.prompts,
        steps=call.steps,
        negative_prompts=None if negative is None else [negative] * order.count,
        arguments=call.arguments,
        batch_size=order.batch_size,
    )


def _record(order: Order, request: Request, call: Settled, pipe: StockPipeline, written: Written) -> Record:
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


def _labels(order: Order, *, pipe: StockPipeline, notes: Notes | None) -> list[int] | None:
    """The label of each image; drawn from the real classes where none was asked for."""
    classes = arguments.real_classes(pipe, notes)
    if order.labels is None:
        return arguments.in_turn(classes, range(order.count)) if classes else None
    if classes:
        arguments.check_labels(order.labels, classes)
    return arguments.in_turn(order.labels, range(order.count))


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
