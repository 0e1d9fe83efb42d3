"""A folder of image files: class folders, captions in text files or metadata.jsonl beside them, or images alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .captions import Captions, Text
from .decode import SUFFIXES
from .images import ImageSource
from .metadata import METADATA, Metadata
from .text import read_lines


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Images below `path`, in the order of their sorted paths; hidden files and folders do not count.

    Images directly in `path` have no label. Otherwise each folder in `path` is a class: its images, at any
    depth, are labelled with the position of its name among the sorted names (sorted as numbers if all are
    numbers). In both layouts the prompt of `a.png` is the text of `a.txt` beside it, its lines joined; either
    every image has one or none has. A `metadata.jsonl` in `path` (each line a mapping with `file_name`, perhaps
    `text`, `caption` or `prompt`, which may be a list, and a whole number `label`) takes the place of all that.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def files(self) -> Sequence[Path]:
        """The image files, item 0 first."""
        return self.records.images

    @cached_property
    def records(self) -> "Files | Metadata":
        metadata = self.path / METADATA
        return Metadata(metadata, self.text) if metadata.is_file() else Files(self.path, self.text)


class Files:
    """Images by their places in a folder."""

    def __init__(self, path: Path, text: Text) -> None:
        self.path, self._text = path, text

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int | None:
        """How many class folders there are."""
        return len(self._classes) or None

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """The image files, item 0 first."""
        files = tuple(file for images in self._classes.values() for file in images) or self._direct
        if not files:
            raise UserError(
                f"image folder {self.path} has no images ({' '.join(sorted(SUFFIXES))}), neither directly in "
                "it nor in class folders; give the path of a folder with images"
            )
        return files

    @cached_property
    def captions(self) -> Captions | None:
        """The texts beside the images."""
        texts = [file.with_suffix(".txt") for file in self.images]
        missing = [text for text in texts if not text.is_file()]
        if len(missing) == len(texts):
            return None
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(texts)} images in {self.path} have no caption, first "
                f"{missing[0]}; either every image has a .txt file of its name beside it (possibly empty) or "
                "none has"
            )
        between = " " if self._text == "caption" else "\n"
        return Captions.read(((between.join(read_lines(text)),) for text in texts), self._text)

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The number of each image's folder."""
        return self._labels[torch.as_tensor(numbers)] if self._classes else None

    @cached_property
    def _labels(self) -> Tensor:
        sizes = torch.tensor([len(images) for images in self._classes.values()], dtype=torch.int64)
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all items: images, and their captions where they have some."""
        texts = [file.with_suffix(".txt") for file in self.images] if self.captions is not None else []
        return (*self.images, *texts)

    def encoded(self, number: int) -> Path:
        """The file of an image."""
        return self.images[number]

    def named(self, number: int) -> str:
        """The file of an image."""
        return str(self.images[number])

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
                f"images, or all images lie directly in it, or a {METADATA} in it names them"
            )
        order = sorted(folders, key=int) if all(map(str.isdecimal, folders)) else sorted(folders)
        return {name: folders[name] for name in order}


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
