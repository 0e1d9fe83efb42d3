"""A folder of image files: class folders, captions in text files beside the images, or images alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import UserError
from .decode import SUFFIXES, Pixels, decode
from .pixels import PixelCache, check_settings
from .source import Items
from .text import read_lines


@dataclass(frozen=True)
class ImageFolder:
    """Images below `path`, in the order of their sorted paths; hidden files and folders do not count.

    Images directly in `path` have no label. Otherwise each folder in `path` is a class: its images, at any
    depth, are labelled with the position of its name among the sorted names (sorted as numbers if all are
    numbers). In both layouts the prompt of `a.png` is the text of `a.txt` beside it, its lines joined; either
    every image has one or none has.

    Args:
        path: the folder.
        size: side in pixels; images are centre-cropped to a square and resized.
        channels: 3 for RGB, 1 for grey.
        cache_gib: decoded images stay in memory while the whole set is no larger, in GiB of uint8 pixels.
        unreadable: images that may be skipped because they cannot be read, each said by its name.
    """

    path: Path
    size: int
    channels: Literal[1, 3] = 3
    cache_gib: float = 2.0
    unreadable: int = 100

    has_images: ClassVar[bool] = True

    @property
    def num_classes(self) -> int | None:
        return len(self._classes) or None

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The image files, item 0 first."""
        files = tuple(file for images in self._classes.values() for file in images) or self._direct
        if not files:
            raise UserError(
                f"image folder {self.path} has no images ({' '.join(sorted(SUFFIXES))}), neither directly in "
                "it nor in class folders; give the path of a folder with images"
            )
        return files

    @cached_property
    def prompts(self) -> tuple[str, ...] | None:
        captions = [file.with_suffix(".txt") for file in self.files]
        missing = [caption for caption in captions if not caption.is_file()]
        if len(missing) == len(captions):
            return None
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(captions)} images in {self.path} have no caption, first "
                f"{missing[0]}; either every image has a .txt file of its name beside it (possibly empty) or "
                "none has"
            )
        return tuple(" ".join(read_lines(caption)) for caption in captions)

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files of all items: images, and their captions where they have some."""
        captions = [file.with_suffix(".txt") for file in self.files] if self.prompts is not None else []
        return (*self.files, *captions)

    def check(self) -> None:
        check_settings(self.size, self.channels, self.cache_gib, self.unreadable)
        _ = self.files, self.prompts

    def __len__(self) -> int:
        return len(self.files)

    def items(self, indices: Sequence[int]) -> Items:
        images, found = self._pixels.images(indices)
        return replace(self.without_images(found), images=images)

    def named(self, index: int) -> str:
        """The file of an item."""
        return str(self.files[index])

    def without_images(self, indices: Sequence[int]) -> Items:
        """Labels and prompts alone."""
        return Items(
            labels=self._labels[torch.as_tensor(indices)] if self._classes else None,
            prompts=None if self.prompts is None else tuple(self.prompts[index] for index in indices),
        )

    @cached_property
    def _direct(self) -> tuple[Path, ...]:
        """The images directly in `path`."""
        return tuple(filter(_is_image, _visible(self.path)))

    @cached_property
    def _classes(self) -> dict[str, tuple[Path, ...]]:
        """The images of each class folder, label 0 first; empty when images lie directly in `path`."""
        folders = {entry.name: tuple(_images_below(entry)) for entry in _visible(self.path) if entry.is_dir()}
        empty = [name for name, images in folders.items() if not images]
        if len(empty) == len(folders):
            return {}
        if empty or self._direct:
            problem = f"no image in {empty[0]!r}" if empty else f"{self._direct[0].name!r} beside class folders"
            raise UserError(
                f"image folder {self.path} has {problem}; either every folder in it is a class and holds "
                "images, or all images lie directly in it"
            )
        order = sorted(folders, key=int) if all(map(str.isdecimal, folders)) else sorted(folders)
        return {name: folders[name] for name in order}

    @cached_property
    def _labels(self) -> Tensor:
        sizes = torch.tensor([len(images) for images in self._classes.values()])
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @cached_property
    def _pixels(self) -> PixelCache:
        shape = (len(self), self.channels, self.size, self.size)
        return PixelCache(self._decode, shape, limit_gib=self.cache_gib, unreadable=self.unreadable)

    def _decode(self, index: int) -> Pixels:
        file = self.files[index]
        return decode(file, str(file), size=self.size, channels=self.channels)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"image folder {folder} cannot be read ({error.strerror}); give the path of a readable folder with images"
        ) from error


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in SUFFIXES and entry.is_file()


def _images_below(folder: Path) -> Iterator[Path]:
    for entry in _visible(folder):
        if _is_image(entry):
            yield entry
        elif entry.is_dir() and not entry.is_symlink():  # a link may lead back up
            yield from _images_below(entry)
