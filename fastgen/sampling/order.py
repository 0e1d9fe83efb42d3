"""An order of images: what a user asks of a pipeline, settled with its notes, and drawn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError, warn
from ..models.pipelines import arguments
from ..models.pipelines.folders import is_lora
from ..models.pipelines.notes import Notes
from ..models.pipelines.opening import Opened
from ..models.pipelines.stock_pipeline import StockPipeline
from . import stock
from .call import Asked, Settled, settle, warn_of_steps
from .faster import Faster

MOST_SEED = 2**62
_DEFAULT_NUM = 16


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
class Request:
    """What the images of an order are asked for by; labels and prompts are as long as seeds, or None."""

    seeds: Sequence[int]
    labels: Sequence[int] | None
    prompts: Sequence[str] | None


@dataclass(frozen=True)
class Prepared:
    """An order with its pipeline, loaded, and what the pipeline is really told."""

    order: Order
    pipe: StockPipeline
    request: Request
    call: Settled

    def drawn(self) -> Iterator[stock.Drawn]:
        """The images of the order, batch by batch."""
        request, call, order = self.request, self.call, self.order
        negative = call.negative_prompt
        return stock.generate(
            self.pipe,
            seeds=request.seeds,
            labels=request.labels,
            prompts=request.prompts,
            steps=call.steps,
            negative_prompts=None if negative is None else [negative] * order.count,
            arguments=call.arguments,
            batch_size=order.batch_size,
        )


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
    return torch.cat([drawn.images for drawn in prepared(order, warn).drawn()])


def prepared(order: Order, warn: Callable[[str], None]) -> Prepared:
    """Loads the pipeline of an order and settles its call; `warn` is told what is allowed but unwise.

    Raises:
        UserError: no such pipeline, or an order that it cannot take.
    """
    opened = Opened(order.pipeline, order.base, order.stacked)
    notes = opened.notes
    device = ("cuda" if torch.cuda.is_available() else "cpu") if order.device == "auto" else order.device
    order.faster.check(dtype=order.dtype, lora=any(is_lora(one.folder) for one in opened.each or (opened,)))
    pipe = opened.load(order.asked.steps, device=device, dtype=getattr(torch, order.dtype))
    order.faster.prepare(pipe, device)
    request = _request(order, pipe=pipe, notes=notes)
    warn_of_steps(notes, order.asked.steps, warn)
    call = settle(pipe, notes, order.asked, example=_example(pipe, request), warn=warn)
    return Prepared(order, pipe, request, call)


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


def _labels(order: Order, *, pipe: StockPipeline, notes: Notes | None) -> list[int] | None:
    """The label of each image; drawn from the real classes where none was asked for."""
    classes = arguments.real_classes(pipe, notes)
    if order.labels is None:
        return arguments.in_turn(classes, range(order.count)) if classes else None
    if classes:
        arguments.check_labels(order.labels, classes)
    return arguments.in_turn(order.labels, range(order.count))
