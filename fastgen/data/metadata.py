"""Images that a metadata.jsonl names, as Hugging Face's image folders have one."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..limits import Cap, parsed, plain, read_bytes
from .captions import Captions, Text

METADATA = "metadata.jsonl"
CAPTION_NAMES = ("caption", "text", "prompt")


class Metadata:
    """Image files in the order of the lines that name them.

    Raises (every member does):
        UserError: the file cannot be read, or a line of it does not say what it has to; it is named by its number.
    """

    def __init__(self, path: Path, text: Text) -> None:
        self.path, self._text = path, text

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """The image files, item 0 first."""
        return tuple(self._file(number, line) for number, line in enumerate(self._lines))

    @cached_property
    def captions(self) -> Captions | None:
        """What the lines say of the images in the first of `CAPTION_NAMES` that one of them has."""
        name = next((name for name in CAPTION_NAMES if any(name in line for line in self._lines)), None)
        return None if name is None else Captions.read(self._texts(name), self._text)

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The labels of these images."""
        return None if self._labels is None else self._labels[torch.as_tensor(numbers)]

    @cached_property
    def _labels(self) -> Tensor | None:
        """The whole numbers that the lines have as `label`."""
        found = [line.get("label") for line in self._lines]
        if any(label is None for label in found):
            self._all_or_none("label")
            return None
        for number, label in enumerate(found):
            if isinstance(label, bool) or not isinstance(label, int) or label < 0:
                raise UserError(f"{self._where(number)} has the label {label!r}: labels are whole numbers from 0 on")
        return torch.tensor(found, dtype=torch.int64)

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label."""
        return None if self._labels is None else int(self._labels.max()) + 1

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, and what names them."""
        return (*self.images, self.path)

    def encoded(self, number: int) -> Path:
        """The file of an image."""
        return self.images[number]

    def named(self, number: int) -> str:
        """The file of an image."""
        return str(self.images[number])

    @cached_property
    def _lines(self) -> list[Mapping[str, Any]]:
        raw = read_bytes(self.path, Cap.TEXT).removeprefix(b"\xef\xbb\xbf").splitlines()
        lines = [parsed(line, f"{self.path}, line {n}") for n, line in enumerate(raw, start=1) if line.strip()]
        for number, line in enumerate(lines):
            if not isinstance(line, Mapping):
                raise UserError(
                    f'{self._where(number)} is no mapping: write a line {{"file_name": ...}} for each image'
                )
        if not lines:
            raise UserError(f'{self.path} names no image: write a line {{"file_name": ...}} for each')
        return lines

    def _file(self, number: int, line: Mapping[str, Any]) -> Path:
        name = line.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{self._where(number)} has no file_name: each line is a mapping with the name of an image")
        place = Path(name)
        if place.is_absolute() or ".." in place.parts or "\0" in name:
            raise UserError(f"{self._where(number)} names {name!r}: images lie in that folder, or below it")
        file = self.path.parent / place
        if not file.is_file():
            raise UserError(f"{self._where(number)} names {name!r}, which is no file in {self.path.parent}: correct it")
        return file

    def _texts(self, name: str) -> Iterator[list[str]]:
        self._all_or_none(name)
        for number, line in enumerate(self._lines):
            texts = line[name] if isinstance(line[name], list) else [line[name]]
            if not texts or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{self._where(number)} has no text as {name}: give a text, or a list of several")
            yield [plain(text, self._where(number)) for text in texts]

    def _all_or_none(self, name: str) -> None:
        missing = [number for number, line in enumerate(self._lines) if line.get(name) is None]
        if 0 < len(missing) < len(self._lines):
            raise UserError(
                f"{len(missing)} of the {len(self._lines)} lines of {self.path} have no {name}, first "
                f"{self._where(missing[0])}: every line has one (a caption may be empty) or none has"
            )

    def _where(self, number: int) -> str:
        return f"{self.path}, image {number + 1}"
