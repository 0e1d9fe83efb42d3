"""Where the images of a report's row come from: files, or a stock pipeline sampled on the fly."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fastgen.data.prompts import numbered_prompts
from fastgen.data.text import read_lines
from fastgen.errors import UserError
from fastgen.models import loading
from fastgen.models.arguments import conditioning_kind, default_steps, parameters, real_classes
from fastgen.notes import Notes
from fastgen.sampling import stock

from .costs import Costs
from .guided import guiding
from .images import ImageBatch, Reading, Skipped, image_batches
from .imagesets import open_images
from .precision import autocasting

Role = Literal["real", "teacher", "student"]


@dataclass(frozen=True)
class Origin:
    """How the images of a row were made; what does not apply is None."""

    path: str
    kind: Literal["pipeline", "images", "statistics"]
    steps: int | None = None
    guidance: float | None = None
    first_seed: int | None = None
    dtype: str | None = None


class Source(Protocol):
    """Images, and how they were made. A share is a range of image numbers."""

    @property
    def origin(self) -> Origin: ...

    @property
    def skipped(self) -> Sequence[Skipped]: ...

    @property
    def costs(self) -> Costs | None: ...

    def batches(self, share: range) -> Iterator[ImageBatch]: ...


@dataclass(frozen=True)
class Request:
    """What is asked for by image number: labels or prompts in turn; None leaves it to the pipeline's classes.

    Raises:
        UserError: a file that cannot be read, or holds something else.
    """

    prompts: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None

    @classmethod
    def read(cls, prompts: Path | None, labels: Path | None) -> "Request":
        return cls(
            prompts=None if prompts is None else numbered_prompts(prompts),
            labels=None if labels is None else _numbers(labels),
        )


AUTOCAST = "autocast"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is alike for every pipeline of a report: image i uses seed + i."""

    seed: int
    batch_size: int
    device: torch.device
    dtype: str
    request: Request


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images of a folder or file; image i was asked for prompt i of `prompts`, in turn, unless the files say it."""

    path: Path
    reading: Reading
    prompts: tuple[str, ...] | None = None
    costs: None = None

    @property
    def origin(self) -> Origin:
        return Origin(str(self.path), "images")

    @property
    def skipped(self) -> Sequence[Skipped]:
        return self.reading.skipped

    def batches(self, share: range) -> Iterator[ImageBatch]:
        for batch in image_batches(open_images(self.path), self.reading, share):
            yield batch if self.prompts is None or batch.prompts is not None else _asked(batch, self.prompts)


@dataclass(frozen=True, eq=False)
class PipelineSource:
    """A loaded pipeline at one step count."""

    path: str
    pipe: DiffusionPipeline
    classes: range
    null_label: int | None
    steps: int | None
    guidance: float | None
    draw: Draw
    costs: Costs = field(default_factory=Costs)
    skipped: tuple[Skipped, ...] = ()

    @property
    def origin(self) -> Origin:
        return Origin(self.path, "pipeline", self.steps, self.guidance, self.draw.seed, self.draw.dtype)

    def asked(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Labels or prompts of images by their numbers, as arguments of `stock.generate`."""
        kind, request = conditioning_kind(self.pipe), self.draw.request
        if kind == "prompt":
            if request.prompts is None:
                raise UserError(
                    "A text pipeline is measured on prompts and got none; give a text file of them with --prompts."
                )
            return {"prompts": [request.prompts[i % len(request.prompts)] for i in numbers]}
        if kind == "label":
            labels = request.labels or tuple(self.classes)
            return {"labels": [labels[i % len(labels)] for i in numbers]}
        return {}

    def batches(self, share: range) -> Iterator[ImageBatch]:
        with self.costs.counting(self.pipe, self.draw.device):
            yield from self._batches(share, share, watch=self.costs)

    def at(self, seed: int) -> "PipelineSource":
        """The same pipeline and ledger of costs, image i with `seed` + i."""
        return replace(self, draw=replace(self.draw, seed=seed))

    def strip(self, count: int) -> Iterator[ImageBatch]:
        """`count` images of what image 0 asks for, with the seeds of images 0, 1, 2 ...; costs do not count."""
        yield from self._batches(range(count), [0] * count, watch=Costs())

    def _batches(self, seeds: range, numbers: Sequence[int], *, watch: Costs) -> Iterator[ImageBatch]:
        asked = self.asked(numbers)
        with ExitStack() as stack:
            guidance = self.guidance
            if guidance not in (None, 1.0) and "guidance_scale" not in parameters(self.pipe) and _by_label(self.pipe):
                stack.enter_context(guiding(self.pipe, guidance, self.null_label))
                guidance = None
            drawn = stock.generate(
                self.pipe,
                seeds=[self.draw.seed + i for i in seeds],
                steps=self.steps,
                guidance=guidance,
                batch_size=self.draw.batch_size,
                progress=False,
                **asked,
            )
            if self.draw.dtype == AUTOCAST:
                stack.enter_context(autocasting(self.pipe, self.draw.device))
            start = 0
            for images in watch.timing(drawn):
                part = {name: values[start : start + len(images)] for name, values in asked.items()}
                yield _drawn(images, part)
                start += len(images)


def is_image_set(path: str) -> bool:
    local = Path(path)
    return local.is_file() or (local.is_dir() and not (local / "model_index.json").is_file())


def pipelines(path: str, draw: Draw, *, steps: Sequence[int], guidance: float | None) -> Iterator[PipelineSource]:
    """One source per step count of the pipeline at `path`, which is loaded once.

    Args:
        guidance: None takes that of a student's notes, otherwise the pipeline's default.

    Raises:
        UserError: there is no pipeline that can be loaded.
    """
    folder = loading.locate(path)
    notes = Notes.read(folder)
    dtype = torch.float32 if draw.dtype == AUTOCAST else getattr(torch, draw.dtype)
    pipe = loading.load(folder, device=draw.device, dtype=dtype)
    classes = real_classes(pipe, notes)
    for count in steps or (default_steps(pipe),):
        yield PipelineSource(
            path=path,
            pipe=pipe,
            classes=classes,
            null_label=notes.null_label if notes and notes.null_label is not None else _label_above(pipe, classes),
            steps=count,
            guidance=notes.guidance if notes and guidance is None else guidance,
            draw=draw,
        )


def declared_steps(path: str) -> tuple[int, ...]:
    """The step counts a student was trained for, as its notes say; empty without notes or pipeline."""
    if is_image_set(path):
        return ()
    notes = Notes.read(loading.locate(path))
    return notes.steps if notes else ()


def _by_label(pipe: DiffusionPipeline) -> bool:
    return conditioning_kind(pipe) == "label"


def _label_above(pipe: DiffusionPipeline, classes: range) -> int | None:
    """The embedding just above the real classes, if the UNet has one."""
    unet = pipe.components.get("unet")
    known = unet.config.get("num_class_embeds") or 0 if unet is not None else 0
    return classes.stop if known > classes.stop > 0 else None


def _drawn(images: Tensor, asked: dict[str, Any]) -> ImageBatch:
    """Samples in [0, 1] with what was asked for; uint8 is rounded to the nearest level."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    if "labels" in asked:
        labels = torch.tensor(asked["labels"])
        return ImageBatch(pixels, labels, conditions=labels)
    if "prompts" in asked:
        return ImageBatch(pixels, None).asked_for(tuple(asked["prompts"]))
    return ImageBatch(pixels, None, conditions=torch.zeros(len(pixels), dtype=torch.int64))


def _asked(batch: ImageBatch, prompts: tuple[str, ...]) -> ImageBatch:
    return batch.asked_for(tuple(prompts[number % len(prompts)] for number in batch.numbers or ()))


def _numbers(file: Path) -> tuple[int, ...]:
    lines = tuple(read_lines(file))
    wrong = next((line for line in lines if not line.strip().isdecimal()), None)
    if wrong is not None or not lines:
        raise UserError(f"Label file {file} needs one class number per line, but holds {wrong or 'nothing'!r}.")
    return tuple(map(int, lines))
