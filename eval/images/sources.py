"""Where the images of a report's row come from: what a source is, and files as one."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fastgen.data.pixels import to_uint8
from fastgen.data.prompts import numbered_prompts
from fastgen.data.text import read_lines
from fastgen.errors import UserError
from fastgen.models.pipelines.arguments import in_turn
from fastgen.models.pipelines.folders import is_run, is_student

from ..rows import Origin, Skipped
from .costs import Costs
from .decode import ImageBatch, Reading, decode, image_batches
from .sets import open_images


class Source(Protocol):
    """Images, and how they were made. A share is a range of image numbers."""

    @property
    def origin(self) -> Origin: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def skipped(self) -> Sequence[Skipped]: ...

    @property
    def costs(self) -> Costs | None: ...

    def batches(self, share: range) -> Iterator[ImageBatch]: ...


Picture = Callable[[], Tensor]
"""Makes an image [1 or 3, H, W] to look at, uint8 or in [0, 1]."""


class RealSource(Source, Protocol):
    """Real images, which can be shown one by one."""

    @property
    def total(self) -> int: ...

    def pictures(self, unread: Container[str]) -> Iterator[Picture]:
        """The images in order, but for those of these names."""


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


MOST_DIGITS = 9  # of a class

View = Callable[[Tensor], Tensor]
"""Pictures [B, 1 or 3, H, W] in [0, 1] -> the images that a protocol looks at."""


def eight_bit(pictures: Tensor) -> Tensor:
    """uint8 RGB, rounded to the nearest level: what a file would hold."""
    return to_uint8(pictures).expand(-1, 3, -1, -1)


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images of a folder or file; image i was asked for prompt i of `prompts`, in turn, unless the files say it."""

    path: Path
    reading: Reading
    prompts: tuple[str, ...] | None = None
    steps: None = None
    costs: None = None

    @property
    def origin(self) -> Origin:
        return Origin(str(self.path), "images")

    @property
    def skipped(self) -> Sequence[Skipped]:
        return self.reading.skipped

    @property
    def total(self) -> int:
        return len(open_images(self.path))

    def pictures(self, unread: Container[str]) -> Iterator[Picture]:
        return (partial(decode, image) for image in open_images(self.path) if image.name not in unread)

    def batches(self, share: range) -> Iterator[ImageBatch]:
        for batch in image_batches(open_images(self.path), self.reading, share):
            yield batch if self.prompts is None or batch.prompts is not None else _asked(batch, self.prompts)


def is_image_set(path: str) -> bool:
    """Whether there are images at the path, and no pipeline; the pictures in the folder of a run are none."""
    local = Path(path)
    return local.is_file() or (local.is_dir() and not is_student(local) and not is_run(local))


def _asked(batch: ImageBatch, prompts: tuple[str, ...]) -> ImageBatch:
    return batch.asked_for(tuple(in_turn(prompts, batch.numbers or ())))


def _numbers(file: Path) -> tuple[int, ...]:
    lines = tuple(read_lines(file))
    wrong = next((line for line in lines if not line.isdecimal() or len(line) > MOST_DIGITS), None)
    if wrong is not None or not lines:
        raise UserError(f"label file {file} needs one class number per line, but holds {wrong or 'nothing'!r:.80}")
    return tuple(map(int, lines))
