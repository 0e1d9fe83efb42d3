"""WebDataset shards: tar files of images, captions and classes, any of which can be asked for by its place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..limits import Cap, parsed, plain
from .captions import Captions, Text
from .decode import SUFFIXES
from .images import ImageSource
from .kept import kept_array
from .metadata import CAPTION_NAMES
from .tars import members
from .texts import Texts

_NONE, _TXT, _JSON = range(3)  # what holds a caption
_SHARD, _IMAGE, _SIZE, _KIND, _TEXT, _LENGTH, _CLASS = range(7)  # columns of an index


@dataclass(frozen=True)
class WebDataset(ImageSource):
    """Images in tar files that are not compressed, in the order of the files' names and of their members.

    Members that share a name up to its first dot belong together: `0001.jpg`, its caption `0001.txt` (or the `caption`,
    `text` or `prompt` of `0001.json`) and its class `0001.cls`. Where each lies is read once and kept between runs.

    Args:
        path: one tar file, or a folder of *.tar.
    """

    path: Path

    @cached_property
    def records(self) -> "Shards":
        return Shards(self.path, self.text)


class Shards:
    """Images by their places in tar files.

    Raises (every member does):
        UserError: there is no shard, one is damaged, or images lack what others have.
    """

    def __init__(self, path: Path, text: Text) -> None:
        self.path, self._text = path, text

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def files(self) -> Sequence[Path]:
        """The shards."""
        found = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
        if not found or not found[0].is_file():
            raise UserError(f"there is no tar file at {self.path}; give the path of one, or of their folder")
        return found

    @property
    def num_classes(self) -> int | None:
        """One more than the largest class."""
        return None if self._classes is None else int(self._classes.max()) + 1

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The classes of these images."""
        return None if self._classes is None else self._classes[torch.as_tensor(numbers)]

    @cached_property
    def captions(self) -> Captions | None:
        """The texts beside the images, each read when it is asked for unless it may be several."""
        if not self._all_or_none(self._index[:, _KIND] != _NONE, "caption (.txt or .json)"):
            return None
        texts = _Beside(self)
        return Captions(texts) if self._text == "caption" else Captions.read(([text] for text in texts), self._text)

    def encoded(self, number: int) -> BytesIO:
        """The bytes of an image."""
        Cap.IMAGE.check(int(self._index[number, _SIZE]), self.named(number))
        return BytesIO(self._bytes(number, _IMAGE, _SIZE))

    def named(self, number: int) -> str:
        """The image by its place in its shard."""
        shard = int(self._index[number, _SHARD])
        first = int(np.searchsorted(self._index[:, _SHARD], shard))
        return f"{number - first} of {self.files[shard]}"

    def caption(self, number: int) -> str:
        """The text beside an image."""
        where = f"the caption of image {self.named(number)}"
        Cap.TEXT.check(int(self._index[number, _LENGTH]), where)
        content = self._bytes(number, _TEXT, _LENGTH)
        if self._index[number, _KIND] == _JSON:
            held = parsed(content, where)
            text = next((held[name] for name in CAPTION_NAMES if held.get(name) is not None), None)
            if not isinstance(text, str):
                raise UserError(f"{where} is no text: its .json has one as caption, text or prompt")
        else:
            try:
                text = content.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not valid UTF-8: write the shard anew") from error
        return plain(" ".join(text.splitlines()) if self._text == "caption" else text, where)

    def _bytes(self, number: int, place: int, length: int) -> bytes:
        row = self._index[number]
        with self.files[int(row[_SHARD])].open("rb") as shard:
            shard.seek(int(row[place]))
            return shard.read(int(row[length]))

    @cached_property
    def _classes(self) -> Tensor | None:
        classes = self._index[:, _CLASS]
        return torch.from_numpy(classes.copy()) if self._all_or_none(classes >= 0, "class (.cls)") else None

    def _all_or_none(self, there: NDArray[np.bool_], what: str) -> bool:
        if there.any() and not there.all():
            first = int(np.flatnonzero(~there)[0])
            raise UserError(
                f"{int((~there).sum()):,} of the {len(there):,} images in {self.path} have no {what}, first image "
                f"{self.named(first)}: either every image has one or none has"
            )
        return bool(there.all())

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        """Where images and captions lie, and the classes, [n, 7]."""
        index = kept_array("shards", self.files, self._read)
        if not len(index):
            raise UserError(f"{self.path} holds no image ({' '.join(sorted(SUFFIXES))}); give other shards")
        return index

    def _read(self) -> NDArray[np.int64]:
        rows: list[list[int]] = []
        for number, shard in enumerate(tqdm(self.files, desc="shards", leave=False, disable=len(self.files) < 8)):
            rows += _rows_of(shard, number)
        return np.array(rows, np.int64).reshape(-1, 7)


class _Beside(Texts):
    """The captions of shards."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def text(self, number: int) -> str:
        return self._shards.caption(number)


def _rows_of(shard: Path, number: int) -> Iterator[list[int]]:
    """A row of the index for each image of a shard."""
    key, row = "", [number, -1, 0, _NONE, -1, 0, -1]
    for archive, member in members(shard, "r:"):
        path = PurePosixPath(member.name)
        own = str(path.parent / path.name.partition(".")[0])
        if own != key:
            if row[_IMAGE] >= 0:
                yield row
            key, row = own, [number, -1, 0, _NONE, -1, 0, -1]
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            row[_IMAGE], row[_SIZE] = member.offset_data, member.size
        elif suffix == ".txt" or (suffix == ".json" and row[_KIND] == _NONE and _has_caption(archive, member)):
            row[_KIND], row[_TEXT], row[_LENGTH] = _TXT if suffix == ".txt" else _JSON, member.offset_data, member.size
        elif suffix == ".cls":
            row[_CLASS] = _class_of(archive, member, shard)
    if row[_IMAGE] >= 0:
        yield row


def _content(archive: Any, member: Any, cap: Cap) -> bytes:
    cap.check(member.size, f"{member.name}")
    stream = archive.extractfile(member)
    return bytes(stream.read()) if stream else b""


def _has_caption(archive: Any, member: Any) -> bool:
    """Whether a .json says of an image what it may be asked for by."""
    try:
        held = json.loads(_content(archive, member, Cap.JSON))
    except (ValueError, RecursionError):
        return False
    return isinstance(held, dict) and any(isinstance(held.get(name), str) for name in CAPTION_NAMES)


def _class_of(archive: Any, member: Any, shard: Path) -> int:
    text = _content(archive, member, Cap.NUMBER).decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise UserError(f"{member.name} of {shard} is {text!r:.40}: a class is a whole number from 0 on")
    return int(text)
