"""Encoded image files: what is known of one, and what counts as one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from fastgen.data.decode import SUFFIXES

CONTACT_SHEET = "grid.png"  # `fastgen sample` writes it beside the images


@dataclass(frozen=True)
class EncodedImage:
    """An image file's content, what error messages call it, and what is known of it.

    Attributes:
        prompt: what it was asked for.
        flags: flags that the pipeline's own checkers raised on it.
    """

    name: str
    content: bytes
    label: int | None
    prompt: str | None = None
    flags: tuple[str, ...] = ()


class ImageSet(Protocol):
    """A finite set of encoded images that can be read in order, again and again.

    Attributes:
        prompts: prompts that the images were drawn for; None where the set does not say it before it is read.
    """

    @property
    def prompts(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[EncodedImage]: ...


def is_image(inside: PurePosixPath | Path) -> bool:
    """Whether a path in a set is one of its images, by its name."""
    hidden = any(part.startswith(".") for part in inside.parts)
    return inside.suffix.lower() in SUFFIXES and inside.name != CONTACT_SHEET and not hidden
