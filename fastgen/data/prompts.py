"""Sources for data-free training: prompts or labels to ask for, and no images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from ..errors import UserError
from .source import Items, Source
from .text import HELD, Lines, read_lines

UNCONDITIONAL_LENGTH = 1024


def numbered_prompts(path: Path) -> tuple[str, ...]:
    """Prompts to sample or to measure: line i of a UTF-8 text file is prompt i, an empty line the empty prompt.

    Blank lines at the end of the file do not count.

    Raises:
        UserError: the file cannot be read, or has no prompt.
    """
    return tuple(_some(path, read_lines(path, blank=True)))


@dataclass(frozen=True)
class PromptFile(Source):
    """Prompts to train on: one per line of a UTF-8 text file; blank lines do not count.

    A large file is read line by line when its prompts are asked for, and none is held in memory.

    Args:
        path: the text file.
    """

    path: Path

    has_images: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None

    @cached_property
    def prompts(self) -> Sequence[str]:
        if not self.path.is_file() or self.path.stat().st_size <= HELD:
            return _some(self.path, read_lines(self.path))
        return _some(self.path, Lines(self.path))

    @property
    def reads(self) -> tuple[Path, ...]:
        """The text file."""
        return (self.path,)

    def check(self) -> None:
        _ = self.prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def items(self, indices: Sequence[int]) -> Items:
        return Items(prompts=tuple(self.prompts[index] for index in indices))


@dataclass(frozen=True)
class Noise(Source):
    """Nothing but noise to train on: item i asks for class i, or for nothing when `num_classes` is None.

    The length is nominal: one item per class, so that a shuffled epoch asks for every class once, or
    `UNCONDITIONAL_LENGTH` items that are all alike.

    Args:
        num_classes: number of classes of a class-conditional teacher.
    """

    num_classes: int | None = None

    has_images: ClassVar[bool] = False
    prompts: ClassVar[tuple[str, ...] | None] = None

    def check(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(
                f"num_classes is {self.num_classes}, but a class-conditional source needs at least one "
                "class; leave num_classes out for an unconditional teacher"
            )

    def __len__(self) -> int:
        return self.num_classes or UNCONDITIONAL_LENGTH

    def items(self, indices: Sequence[int]) -> Items:
        if self.num_classes is None:
            return Items()
        return Items(labels=torch.as_tensor(indices, dtype=torch.int64) % self.num_classes)


def _some(path: Path, lines: Sequence[str]) -> Sequence[str]:
    if not lines:
        raise UserError(f"prompt file {path} has no prompts; write one prompt per line")
    return tuple(lines) if isinstance(lines, list) else lines
