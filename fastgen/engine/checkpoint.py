"""Whole-run checkpoints: one folder per step, safetensors and JSON, atomic and verified.

    root/00001234/generator.safetensors   one file per group of tensors
                  state.json              everything that is not a tensor
                  manifest.json           sizes and SHA-256 of the others

A folder with a step's name is complete by construction (see `files`); the manifest guards it afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError, warn
from ..files import atomic_folder, remove_folder, tidy
from ..manifest import MissingFileError, verify_manifest, verify_sizes, write_manifest
from ..models.sharding import whole
from .distributed import broadcast, broadcast_tensors, helped, is_first, on_first

STATE = "state.json"
_TENSORS = ".safetensors"


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on.

    Attributes:
        tensors: group ("generator", "ema", "optimizer.generator") -> name -> tensor; whole where it is saved or read.
            Of a saved one, each group is read anew whenever it is asked for, and not kept.
        state: plain JSON (stage, cycle, images, fingerprint of the config ...). Tuples come back as lists.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: dict[str, Any]

    def group(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a group that it must have.

        Raises:
            CheckpointError: it has no such group.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"the checkpoint has no {name}{_TENSORS} (it has {', '.join(sorted(self.tensors))}): another run wrote "
                "it, or it was edited; use another checkpoint, or start in another output folder (out=...)"
            )
        return self.tensors[name]


@dataclass(frozen=True)
class Loaded:
    """A snapshot and the checkpoint it came from."""

    path: Path
    step: int
    snapshot: Snapshot


class _Groups(Mapping[str, dict[str, Tensor]]):
    """Groups of tensors by name, each read when it is asked for; `nbytes` in all, where that is known before."""

    def __init__(self, names: Iterable[str], read: Callable[[str], dict[str, Tensor]], nbytes: int = 0) -> None:
        self._names, self._read, self.nbytes = tuple(names), read, nbytes

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save(root: Path, step: int, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `root/<step>` atomically, then delete older checkpoints beyond the newest `keep` complete ones.

    A checkpoint already there for this step is replaced. Those of later steps, left by a run that was resumed
    from an earlier one, are neither counted nor deleted. Values are stored bit for bit; tensors that share
    storage are stored one by one.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: the disk is full or refuses; every older checkpoint is untouched.
        ValueError: `keep` < 1, `step` < 0 or a group name that is no file name.
        ValueError, TypeError: JSON cannot hold the state; nothing is written.
    """
    _check_arguments(step, snapshot, keep)
    path = root / f"{step:08d}"
    state = json.dumps(snapshot.state, indent=2, allow_nan=False) + "\n"
    needed = _nbytes(snapshot.tensors)
    try:
        with atomic_folder(path, replace=True) as folder:
            _require_space(folder, needed)
            for group, tensors in snapshot.tensors.items():
                save_file(_unshared(tensors), folder / f"{group}{_TENSORS}")
            (folder / STATE).write_text(state, encoding="utf-8")
            write_manifest(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} could not be written: {error}. It needs {needed:,} bytes beside the "
            f"older checkpoints, which are all untouched; free that much space or use another output folder"
        ) from error
    _prune(root, step, keep)
    return path


def written_together(snapshot: Snapshot, write: Callable[[Snapshot], object]) -> None:
    """Call `write` on the first process with a snapshot of whole tensors, gathered from all processes.

    The groups are gathered one by one, when `write` reads them, so that only one is in memory at a time.

    Args:
        snapshot: this process's part. Tensors that are not sharded are needed on the first process only.

    Raises:
        UserError: as in `on_first`.
    """
    names, held = tuple(snapshot.tensors), _nbytes(snapshot.tensors)

    def told(ask: Callable[[str], dict[str, Tensor]]) -> None:
        write(Snapshot(_Groups(names, ask, held), snapshot.state))

    helped(told, lambda name: _whole(snapshot.tensors.get(name, {})))


def load(path: Path) -> Snapshot:
    """Verify a checkpoint against its manifest; its tensors are read, onto the CPU, as they are asked for.

    Raises:
        CheckpointError: it is missing or altered; its subclasses in `manifest` say how.
        MissingFileError: it lacks a file.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}; give the folder of one step")
    try:
        names = verify_manifest(path)
        if STATE not in names:
            raise MissingFileError(f"{path} holds no {STATE}, so it is not a training checkpoint; give another")
        groups = [name.removesuffix(_TENSORS) for name in names if name.endswith(_TENSORS)]
        for group in groups:
            with safe_open(path / f"{group}{_TENSORS}", framework="pt"):
                pass
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return Snapshot(_Groups(groups, partial(_read, path)), state)


def _read(path: Path, group: str) -> dict[str, Tensor]:
    try:
        return load_file(path / f"{group}{_TENSORS}")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} cannot be read: {error}; use an older one")


def newest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step (all files there with their size), None without one."""
    return next((path for path in reversed(_by_step(root).values()) if _is_complete(path)), None)


def load_newest(root: Path, *, warn: Callable[[str], None]) -> Loaded | None:
    """Load the newest valid checkpoint, telling `warn` about each newer one that is damaged.

    Returns:
        The checkpoint, or None where `root` holds none.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
    """
    failures: list[str] = []
    for step, path in reversed(_by_step(root).items()):
        try:
            snapshot = load(path)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            warn(f"skipped a damaged checkpoint and resume from {path}: {failure}")
        return Loaded(path, step, snapshot)
    if failures:
        raise CheckpointError(
            f"none of the {len(failures)} checkpoints in {root} is valid: {'; '.join(failures)}. Copy "
            f"one there again, or start in another output folder"
        )
    return None


def newest_of_the_first(root: Path, *, warn: Callable[[str], None]) -> Loaded | None:
    """What `load_newest` finds on the first process, for all of them: the others open no file, whatever disk they have.

    Groups are read by the first process and sent: all processes ask for the same ones, in the same order.

    Raises:
        UserError: as `load_newest`, on every process.
    """
    found = on_first(lambda: load_newest(root, warn=warn))
    held: Mapping[str, Mapping[str, Tensor]] = {} if found is None else found.snapshot.tensors
    told = broadcast(None if found is None else (found.path, found.step, tuple(held), found.snapshot.state))
    if told is None:
        return None
    path, step, groups, state = told
    return Loaded(path, step, Snapshot(_Groups(groups, lambda group: broadcast_tensors(lambda: held[group])), state))


def _check_arguments(step: int, snapshot: Snapshot, keep: int) -> None:
    if keep < 1 or step < 0:
        raise ValueError(f"keep={keep} and step={step}: at least one checkpoint is kept, and steps start at 0")
    for group in snapshot.tensors:
        if not re.fullmatch(r"\w[\w.-]*", group, flags=re.ASCII):
            raise ValueError(f"the group {group!r} is no file name; use letters, digits, '.', '-' and '_'")


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free:,} bytes free)")


def _nbytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of the whole tensors."""
    if isinstance(tensors, _Groups):
        return tensors.nbytes
    return sum(tensor.nbytes for group in tensors.values() for tensor in group.values())


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, one after the other; on the CPU of the first process, which alone keeps them."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if is_first():
            found[name] = value.cpu()
    return found


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with a storage of its own, as safetensors asks."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        unshared[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return unshared


def _by_step(root: Path) -> dict[int, Path]:
    """Every folder of `root` that is named as a step, in ascending order, once dead runs are tidied."""
    if not root.is_dir():
        return {}
    tidy(root)
    folders = [path for path in root.iterdir() if re.fullmatch(r"[0-9]{8,}", path.name) and path.is_dir()]
    return dict(sorted((int(path.name), path) for path in folders))


def _is_complete(path: Path) -> bool:
    try:
        verify_sizes(path)
    except CheckpointError:
        return False
    return True


def _prune(root: Path, step: int, keep: int) -> None:
    """Delete what is older than the `keep` newest complete checkpoints up to `step`."""
    earlier = {number: path for number, path in _by_step(root).items() if number <= step}
    complete = [number for number, path in earlier.items() if _is_complete(path)]
    oldest = min([step, *complete[-keep:]])
    for number, path in earlier.items():
        if number < oldest:
            try:
                remove_folder(path)
            except OSError as error:
                warn(f"the old checkpoint {path} could not be deleted: {error}")
