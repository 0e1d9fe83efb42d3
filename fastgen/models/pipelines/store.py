"""Rows of conditioning on disk: many to a file, found by a hash of what they belong to, read by memory map.

A file is named after the hashes of its rows, so that what two processes write twice they write alike, and holds

    hashes          [n, 2] int64, of each row's prompt
    sha256          [n, 32] uint8, of all that the row holds
    shape/PATH      [n, d] int64, of each row of an argument
    row/PATH        the rows of an argument one after the other, flattened

and, as metadata, the arguments that are lists, or no tensors, with the values of the latter.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...files import atomic_file
from ..conditioning import Conditioning
from ..layout import flat, tree

SHARD_BYTES, SHARD_ROWS = 2**28, 4096  # a file's limits; rows in none yet are lost if the run dies
OPEN = 64  # files that are kept open
_HASHES, _SUMS, _SHAPE, _ROW = "hashes", "sha256", "shape/", "row/"
_NOTES = "notes"

_DAMAGE = (
    SafetensorError,
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    SyntaxError,
    TypeError,
)  # raised by a damaged file

Hashes = NDArray[np.int64]


class Store:
    """Rows in a folder, by what they belong to; in memory is where they lie, 24 bytes a row.

    Args:
        folder: of rows that depend on nothing but what they belong to; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._hashes: Hashes = np.empty((0, 2), np.int64)
        self._places: NDArray[np.int32] = np.empty((0, 2), np.int32)
        self._shard = lru_cache(maxsize=OPEN)(_Shard)
        self._sound: set[tuple[int, int]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Finds what other processes have written; a file that is damaged counts as absent."""
        known = set(self._files)
        fresh = [(file, _hashes_in(file)) for file in sorted(self._folder.glob("*.safetensors")) if file not in known]
        self._enter({file: hashes for file, hashes in fresh if hashes is not None})

    @property
    def empty(self) -> bool:
        """Whether it has no row."""
        return not len(self._hashes)

    def missing(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """The numbers of those values that have no row here, of equal ones the first."""
        hashes = hashes_of(values)
        _, first = np.unique(hashes, axis=0, return_index=True)
        found = self._find(hashes[first])
        return np.sort(first[found < 0])

    def row(self, value: Any) -> Conditioning | None:
        """The row of a value that has one; None where it is not what was written, and is forgotten.

        That is looked for when a row is read first.
        """
        while (place := int(self._find(hashes_of([value]))[0])) >= 0:
            number, row = (int(one) for one in self._places[place])
            with suppress(*_DAMAGE):
                shard = self._shard(self._files[number])
                found = shard.row(row)
                if (number, row) in self._sound or shard.is_sound(row, found):
                    self._sound.add((number, row))
                    return found
            self._hashes = np.delete(self._hashes, place, axis=0)
            self._places = np.delete(self._places, place, axis=0)
        return None

    def keep(self, rows: Iterable[tuple[Any, Conditioning]]) -> None:
        """Writes rows with what they belong to, a file as often as one is full."""
        held: list[tuple[Any, dict[str, Any]]] = []
        size = 0
        for value, row in rows:
            leaves = flat(row.batched)
            if held and (size >= SHARD_BYTES or len(held) >= SHARD_ROWS or leaves.keys() != held[0][1].keys()):
                self._write(held)
                held, size = [], 0
            held.append((value, leaves))
            size += bytes_of(row)
        if held:
            self._write(held)

    def check_space(self, needed: int, what: str = "the encoded prompts of this run") -> None:
        """Raises UserError where the disk has not so many bytes left for something."""
        place = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"{what} take {needed:,} bytes in {self._folder}, where {free:,} are free: give a folder on a larger "
                "disk with cache=..., or less data"
            )

    def _write(self, held: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
        hashes = hashes_of([value for value, _ in held])
        tensors, notes = _packed([leaves for _, leaves in held])
        tensors[_HASHES] = torch.from_numpy(hashes)
        sums = bytearray().join(_sum_of(leaves) for _, leaves in held)
        tensors[_SUMS] = torch.frombuffer(sums, dtype=torch.uint8).view(len(held), -1)
        file = self._folder / f"{hashlib.sha256(hashes.tobytes()).hexdigest()[:32]}.safetensors"
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata={_NOTES: json.dumps(notes)})
        self._shard.cache_clear()  # which may have had this one open, before it was written again
        self._enter({file: hashes})

    def _enter(self, files: Mapping[Path, Hashes]) -> None:
        places = [self._places]
        for number, hashes in enumerate(files.values(), len(self._files)):
            places.append(np.stack([np.full(len(hashes), number), np.arange(len(hashes))], axis=1).astype(np.int32))
        every = np.concatenate([self._hashes, *files.values()])
        order = np.argsort(every[:, 0], kind="stable")
        self._files += files
        self._hashes, self._places = every[order], np.concatenate(places)[order]

    def _find(self, hashes: Hashes) -> NDArray[np.int64]:
        """The places [n] of hashes [n, 2] among the known ones; -1 for unknown ones."""
        found = np.full(len(hashes), -1, np.int64)
        at = np.searchsorted(self._hashes[:, 0], hashes[:, 0])
        open_ = np.flatnonzero(at < len(self._hashes))
        while len(open_):  # as often as first halves of hashes coincide
            open_ = open_[self._hashes[at[open_], 0] == hashes[open_, 0]]
            same = self._hashes[at[open_], 1] == hashes[open_, 1]
            found[open_[same]] = at[open_[same]]
            open_ = open_[~same]
            at[open_] += 1
            open_ = open_[at[open_] < len(self._hashes)]
        return found


class Memory:
    """Rows in main memory, by what they belong to; those of a `Store` lie in a folder."""

    def __init__(self) -> None:
        self._rows: dict[Any, Conditioning] = {}

    def refresh(self) -> None:
        """Other processes have a memory of their own."""

    def missing(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """See `Store.missing`."""
        first = {value: number for number, value in reversed(list(enumerate(values)))}
        return np.array(sorted(n for value, n in first.items() if value not in self._rows), np.int64)

    def row(self, value: Any) -> Conditioning | None:
        """See `Store.row`."""
        return self._rows.get(value)

    def keep(self, rows: Iterable[tuple[Any, Conditioning]]) -> None:
        """See `Store.keep`."""
        self._rows.update(rows)

    def check_space(self, needed: int) -> None:
        """Raises UserError where main memory has not so many bytes left."""
        free = psutil.virtual_memory().available
        if free < needed:
            raise UserError(
                f"the encoded prompts of this run take {needed:,} bytes of main memory, where {free:,} are free: keep "
                "them on disk with cache=FOLDER, or give fewer prompts"
            )


class _Shard:
    """An open file of rows."""

    def __init__(self, file: Path) -> None:
        self._content = cast(Any, safe_open(file, framework="pt"))
        self._notes: dict[str, Any] = json.loads(self._content.metadata()[_NOTES])
        names = [name.removeprefix(_SHAPE) for name in self._content.keys() if name.startswith(_SHAPE)]  # noqa: SIM118
        self._shapes = {name: self._content.get_tensor(_SHAPE + name) for name in names}
        self._ends = {name: shapes.prod(dim=1).cumsum(0) for name, shapes in self._shapes.items()}

    def is_sound(self, number: int, row: Conditioning) -> bool:
        """Whether a row is what was written; of files that do not say it is."""
        if _SUMS not in self._content.keys():  # noqa: SIM118
            return True
        return bytes(self._content.get_slice(_SUMS)[number].tolist()) == _sum_of(flat(row.batched))

    def row(self, number: int) -> Conditioning:
        """A row as it stands there."""
        leaves: dict[str, Any] = {path: self._tensor(path, number) for path in self._shapes}
        for path, values in self._notes.items():
            leaves[path] = [leaves[path] if values is None else ast.literal_eval(values[number])]
        return Conditioning(1, tree(leaves))

    def _tensor(self, path: str, number: int) -> Tensor:
        shape = self._shapes[path][number].tolist()
        end = int(self._ends[path][number])
        values: Tensor = self._content.get_slice(_ROW + path)[end - int(np.prod(shape)) : end]
        return values.reshape(shape)


def hashes_of(values: Sequence[Any]) -> Hashes:
    """128 bits for each value, [n, 2]."""
    digests = (hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values)
    return np.frombuffer(bytearray().join(digests), np.int64).reshape(-1, 2)


def bytes_of(row: Conditioning) -> int:
    """What the tensors of a row take."""
    leaves = [leaf[0] if isinstance(leaf, list) else leaf for leaf in flat(row.batched).values()]
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _sum_of(leaves: Mapping[str, Any]) -> bytes:
    """SHA-256 of a row: names, kinds, shapes and values of all that it holds."""
    digest = hashlib.sha256()
    for path, held in sorted(leaves.items()):
        leaf = held[0] if isinstance(held, list) else held
        told = (path, isinstance(held, list), *((leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else (leaf,)))
        digest.update(repr(told).encode())
        if isinstance(leaf, Tensor):
            digest.update(leaf.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _packed(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes of a file; a note is None for a list of tensors, else the values of the rows as literals."""
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for path, first in rows[0].items():
        leaves = [row[path][0] if isinstance(first, list) else row[path] for row in rows]
        if isinstance(leaves[0], Tensor):
            tensors[_SHAPE + path] = torch.tensor([leaf.shape for leaf in leaves], dtype=torch.int64)
            tensors[_ROW + path] = torch.cat([leaf.flatten() for leaf in leaves])
        if isinstance(first, list):
            notes[path] = None if isinstance(leaves[0], Tensor) else [repr(leaf) for leaf in leaves]
    return tensors, notes


def _hashes_in(file: Path) -> Hashes | None:
    """What the rows of a file belong to; None where it cannot be read."""
    try:
        with safe_open(file, framework="np") as content:
            hashes: Hashes = content.get_tensor(_HASHES)
            return hashes
    except (SafetensorError, OSError):
        return None
