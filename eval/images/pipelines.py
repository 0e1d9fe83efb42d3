"""A stock pipeline as a source of images: sampled on the fly, at one step count, seed by seed."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastgen.errors import UserError, warn
from fastgen.models.pipelines.arguments import (
    conditioning_kind,
    conditions,
    default_steps,
    in_turn,
    null_label_above,
    parameters,
    real_classes,
)
from fastgen.models.pipelines.opening import Opened
from fastgen.models.pipelines.stock_pipeline import StockPipeline
from fastgen.sampling import stock
from fastgen.sampling.call import Asked, Settled, settle

from ..networks.precision import autocasting
from ..rows import Latency, Origin, Skipped
from .costs import Costs, denoisers
from .decode import ImageBatch
from .guided import guiding
from .sources import Request, View, eight_bit, is_image_set

AUTOCAST = "autocast"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is alike for every pipeline of a report: image i uses seed + i."""

    seed: int
    batch_size: int
    device: torch.device
    dtype: str
    request: Request
    view: View = eight_bit


@dataclass(frozen=True, eq=False)
class PipelineSource:
    """A loaded pipeline at one step count.

    Attributes:
        guided: w of a guidance that the pipeline's call does not have and its network gets here.
    """

    path: str
    pipe: StockPipeline
    classes: range
    null_label: int | None
    steps: int | None
    call: Settled
    draw: Draw
    guided: float | None = None
    costs: Costs = field(default_factory=Costs)
    skipped: tuple[Skipped, ...] = ()

    @property
    def origin(self) -> Origin:
        return Origin(
            path=self.path,
            kind="pipeline",
            guidance=self.call.guidance if self.guided is None else self.guided,
            first_seed=self.draw.seed,
            dtype=self.draw.dtype,
            negative_prompt=self.call.negative_prompt,
            arguments=self.call.arguments,
        )

    def asked(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Labels or prompts of images by their numbers, as arguments of `stock.generate`."""
        kind, request = conditioning_kind(self.pipe), self.draw.request
        if kind == "prompt":
            if request.prompts is None:
                raise UserError(
                    "a text pipeline is measured on prompts and got none; give a text file of them with --prompts"
                )
            return {"prompts": in_turn(request.prompts, numbers)}
        if kind == "label":
            return {"labels": in_turn(request.labels or self.classes, numbers)}
        return {}

    def batches(self, share: range) -> Iterator[ImageBatch]:
        with self.costs.counting(denoisers(self.pipe), self.draw.device):
            yield from self._batches(share, share, watch=self.costs)

    def at(self, seed: int) -> "PipelineSource":
        """The same pipeline and ledger of costs, image i with `seed` + i."""
        return replace(self, draw=replace(self.draw, seed=seed))

    def latency(self, batch_size: int) -> Latency:
        """How long so many images take that are drawn together: of the second of two calls, costs do not count."""
        source = replace(self, draw=replace(self.draw, batch_size=batch_size))
        watch, numbers = Costs(), range(batch_size)
        try:
            for _ in range(2):
                deque(source._batches(numbers, numbers, watch=watch), maxlen=0)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return Latency(batch_size, None)
        return Latency(batch_size, watch.last)

    def strip(self, count: int) -> Iterator[ImageBatch]:
        """`count` images of what image 0 asks for, with the seeds of images 0, 1, 2 ...; costs do not count."""
        yield from self._batches(range(count), [0] * count, watch=Costs())

    def _batches(self, seeds: range, numbers: Sequence[int], *, watch: Costs) -> Iterator[ImageBatch]:
        asked, negative = self.asked(numbers), self.call.negative_prompt
        with ExitStack() as stack:
            if self.guided is not None:
                stack.enter_context(guiding(self.pipe, self.guided, self.null_label))
            drawn = stock.generate(
                self.pipe,
                seeds=[self.draw.seed + i for i in seeds],
                steps=self.steps,
                negative_prompts=None if negative is None else [negative] * len(seeds),
                arguments=self.call.arguments,
                batch_size=self.draw.batch_size,
                progress=False,
                **asked,
            )
            if self.draw.dtype == AUTOCAST:
                stack.enter_context(autocasting(self.pipe, self.draw.device))
            start = 0
            for batch in watch.timing(drawn):
                part = {name: values[start : start + len(batch.images)] for name, values in asked.items()}
                images = self.draw.view(batch.pictures)
                yield _sampled(images, batch.flags, part, seeds[start : start + len(images)])
                start += len(batch.images)


def pipelines(
    opened: Opened, draw: Draw, *, steps: Sequence[int], asked: Asked, beside: Mapping[str, Any] | None = None
) -> Iterator[PipelineSource]:
    """One source per step count of a pipeline, which is loaded once for all counts that one folder serves.

    Args:
        asked: what is not asked for is as a student's notes say, otherwise the pipeline's default.
        beside: the size of the samples that these stand beside.

    Raises:
        UserError: there is no pipeline that can be loaded, or it does not take what is asked for.
    """
    dtype = torch.float32 if draw.dtype == AUTOCAST else getattr(torch, draw.dtype)
    source, place = None, None
    for count in steps or (None,):
        if source is None or opened.place(count) != place:
            place = opened.place(count)
            pipe = opened.load(count, device=draw.device, dtype=dtype)
            source = _source(pipe, opened, draw, asked=asked, beside=beside)
        yield replace(source, steps=count or default_steps(source.pipe), costs=Costs())


def _source(
    pipe: StockPipeline, opened: Opened, draw: Draw, *, asked: Asked, beside: Mapping[str, Any] | None
) -> PipelineSource:
    """A loaded pipeline at no step count yet; warns of what has no effect on it."""
    notes = opened.notes
    classes = real_classes(pipe, notes)
    source = PipelineSource(
        path=opened.path,
        pipe=pipe,
        classes=classes,
        null_label=notes.null_label if notes and notes.null_label is not None else null_label_above(pipe, classes),
        steps=None,
        call=Settled(),
        draw=draw,
    )
    first = source.asked([0])
    _warn_of_the_other(pipe, draw.request)
    guided = _by_label(pipe) and asked.guidance not in (None, 1.0) and "guidance_scale" not in parameters(pipe)
    example = conditions(pipe, labels=first.get("labels"), prompts=first.get("prompts"))
    plain = replace(asked, guidance=None) if guided else asked
    call = settle(pipe, notes, plain, example=example, warn=warn, beside=beside)
    return replace(source, call=call, guided=asked.guidance if guided else None)


def noted_size(path: str) -> dict[str, Any]:
    """The size that a student was trained for, as arguments of its call; empty without notes or pipeline."""
    notes = None if is_image_set(path) else Opened(path).notes
    return dict(notes.arguments) if notes else {}


def declared_steps(path: str) -> tuple[int, ...]:
    """The step counts a student was trained for, as its notes say; empty without notes or pipeline."""
    if is_image_set(path):
        return ()
    notes = Opened(path).notes
    return notes.steps if notes else ()


def _by_label(pipe: StockPipeline) -> bool:
    return conditioning_kind(pipe) == "label"


def _warn_of_the_other(pipe: StockPipeline, request: Request) -> None:
    """Labels do nothing to a pipeline of prompts, and prompts to another."""
    kind = conditioning_kind(pipe)
    for name, given, wanted in (("--prompts", request.prompts, "prompt"), ("--labels", request.labels, "label")):
        if given is not None and kind != wanted:
            warn(f"{name} changes nothing: {type(pipe).__name__} is not conditioned on {wanted}s.")


def _sampled(
    images: Tensor, flags: tuple[tuple[str, ...], ...], asked: dict[str, Any], numbers: Sequence[int]
) -> ImageBatch:
    """Samples with what was asked for."""
    labels = torch.tensor(asked["labels"]) if "labels" in asked else None
    conditions = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    raised = flags if any(flags) else ()
    batch = ImageBatch(images, labels, conditions=conditions, numbers=tuple(numbers), flags=raised)
    return batch.asked_for(tuple(asked["prompts"])) if "prompts" in asked else batch
