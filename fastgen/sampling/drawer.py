"""A pipeline that is loaded once and asked again and again, each picture with the seconds that its call took."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from PIL import Image

from ..errors import UserError, warn
from ..models.pipelines import arguments
from ..models.pipelines.notes import Notes
from ..models.pipelines.opening import Opened
from ..models.pipelines.stock_pipeline import StockPipeline
from .call import Asked, Settled, settle
from .pictures import picture
from .stock import generate

MOST_STEPS = 200


@dataclass(frozen=True)
class Wish:
    """What a picture is asked for by.

    Attributes:
        steps: of the sampler.
        label, prompt: the one that the pipeline takes.
        guidance: w; None as the pipeline has it.
    """

    steps: int
    seed: int = 0
    label: int | None = None
    prompt: str | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Timed:
    """A picture, and how long its call took in seconds."""

    image: Image.Image
    seconds: float


@dataclass
class Drawer:
    """Draws by one pipeline, a picture at a time.

    Args:
        opened: the pipeline.
        device: "auto" or a torch device.
        beside: of the pipeline whose samples these are to stand beside: their size.
    """

    opened: Opened
    device: str = "auto"
    dtype: torch.dtype = torch.float32
    beside: Mapping[str, Any] = field(default_factory=dict)
    _pipes: dict[str, StockPipeline] = field(default_factory=dict, init=False, repr=False)
    _settled: dict[tuple[int, float | None], Settled] = field(default_factory=dict, init=False, repr=False)
    _one: Any = field(default_factory=Lock, init=False, repr=False)

    @property
    def notes(self) -> Notes | None:
        return self.opened.notes

    @cached_property
    def kind(self) -> str:
        """What it is asked by: prompt, label or none."""
        return arguments.conditioning_kind(self.pipe(None))

    @cached_property
    def classes(self) -> range:
        """The labels that may be asked for."""
        return arguments.real_classes(self.pipe(None), self.notes)

    @cached_property
    def steps(self) -> int:
        """The step count of a call that names none."""
        return self.notes.steps[0] if self.notes else arguments.default_steps(self.pipe(None)) or 1

    def pipe(self, steps: int | None) -> StockPipeline:
        """The pipeline that serves a step count; loaded when it is first asked for."""
        place = str(self.opened.place(steps))
        if place not in self._pipes:
            device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
            self._pipes[place] = self.opened.load(steps, device=device, dtype=self.dtype)
        return self._pipes[place]

    def draw(self, wish: Wish) -> Timed:
        """A picture; one at a time, whoever asks.

        Raises:
            UserError: the pipeline cannot take the wish.
        """
        if not 1 <= wish.steps <= MOST_STEPS:
            raise UserError(f"{wish.steps} steps were asked for: give 1 to {MOST_STEPS}")
        labels = None if wish.label is None else [wish.label]
        prompts = None if wish.prompt is None else [wish.prompt]
        with self._one:
            if labels is not None:
                arguments.check_labels(labels, self.classes)
            pipe = self.pipe(wish.steps)
            call = self._call(pipe, wish, arguments.conditions(pipe, labels=labels, prompts=prompts))
            start = time.perf_counter()
            (drawn,) = generate(
                pipe,
                seeds=[wish.seed],
                labels=labels,
                prompts=prompts,
                steps=wish.steps,
                arguments=call.arguments,
                progress=False,
            )
            seconds = time.perf_counter() - start
        image = drawn.images[0]
        return Timed(picture(image if image.ndim == 3 else image[len(image) // 2]), seconds)

    def _call(self, pipe: StockPipeline, wish: Wish, example: dict[str, list[Any]]) -> Settled:
        key = (wish.steps, wish.guidance)
        if key not in self._settled:
            asked = Asked(steps=wish.steps, guidance=wish.guidance)
            self._settled[key] = settle(pipe, self.notes, asked, example=example, warn=warn, beside=self.beside)
        return self._settled[key]


def side_by_side(student: str, teacher: str | None, *, base: str | None, device: str, dtype: str) -> list[Drawer]:
    """The student and, where it is named or its notes name one that is here, its teacher, which draws at its size.

    Raises:
        UserError: there is no such student, or no teacher where one is named.
    """
    opened, kind = Opened(student, base), getattr(torch, dtype)
    drawers = [Drawer(opened, device, kind)]
    notes = opened.notes
    named = teacher or (notes.teacher if notes else None)
    if named is None:
        return drawers
    try:
        other = Opened(named)
        _ = other.folder
    except UserError as error:
        if teacher is not None:
            raise
        warn(f"the student is shown alone, since its teacher is not here ({error}): name it with --teacher")
        return drawers
    return [*drawers, Drawer(other, device, kind, beside=notes.arguments if notes else {})]
