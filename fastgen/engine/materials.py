"""What a run is made of beside its settings: contents of the teacher's files and the like, by their hashes."""

from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

from ..config.schema import Config
from ..config.teacher import TeacherConfig
from ..contents import contents_of, hashes_of
from ..data import Source
from ..data.mixture import sources_in
from ..errors import CheckpointError, first_few
from ..models.pipelines.folders import INDEX
from ..models.pipelines.fuse import lora_file
from ..models.pipelines.loading import locate, variant_of, weight_files
from .earlier import earlier_of

Material = Literal["teacher", "init", "network", "data", "pairs"]
Materials = Mapping[Material, Mapping[str, str]]
"""Of each material what tells it from others, by name: hashes by file, or numbers of them all."""

_SHOWN = 5
_SPELT_OUT = ("*.json", "*.txt", "*.model")  # configs and vocabularies beside the weights


def materials(config: Config) -> dict[Material, Mapping[str, str]]:
    """What the teacher, the earlier student, the student's own network and the data of a run hold now.

    Raises:
        UserError: files of the teacher, the earlier student or the network are not there.
    """
    start: dict[Material, Mapping[str, str]] = {} if config.init is None else {"init": _init(config.init)}
    if config.student.network is not None and (files := config.student.network.source.files):
        names = [f"{file.parent.name}/{file.name}" for file in files]
        start["network"] = dict(zip(names, hashes_of(files), strict=True))
    return {"teacher": _teacher(config.teacher), **start, "data": contents_of_data(config.data)}


def check_materials(saved: Materials, now: Materials, checkpoint: Path, *, allowed: Collection[Material] = ()) -> None:
    """Check that the files a checkpoint was made with have not changed since.

    A checkpoint of an older version does not name them, and passes.

    Args:
        allowed: materials that may have changed.

    Raises:
        CheckpointError: one that is not allowed to has changed.
    """
    for name, held in now.items():
        changes = _changes(saved.get(name, held), held)
        if changes and name not in allowed:
            raise CheckpointError(
                f"the checkpoint {checkpoint} was made with other contents of the {name}: "
                f"{first_few(changes, _SHOWN, between='; ')}. Put them back, go on with the new "
                f"ones by --allow-changed {name}, or start in another folder (out=...)"
            )


def _changes(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{key} is {'new' if key not in saved else 'gone' if key not in now else _other(saved[key], now[key])}"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
    ]


def _other(saved: str, now: str) -> str:
    return f"{now[:12]}, was {saved[:12]}"


def _teacher(teacher: TeacherConfig) -> dict[str, str]:
    """Hashes of all that is read of a pipeline, by file; of a network that is yet to be trained nothing."""
    if teacher.path is None:
        return {}
    source = teacher.source
    base = locate(source.path, variant=source.variant, revision=source.revision)
    files = {base.name: base}
    if base.is_dir():
        read = chain(*weight_files(base, variant_of(base, source.variant)).values())
        told = (file for end in _SPELT_OUT for file in base.glob(f"*/{end}"))
        files = {file.relative_to(base).as_posix(): file for file in (base / INDEX, *read, *told)}
    for number, lora in enumerate(source.loras):
        file = lora_file(lora)
        files[f"loras.{number} {file.name}"] = file
    return dict(zip(files, hashes_of(files.values()), strict=True))


def _init(path: str) -> dict[str, str]:
    """Hashes of an earlier student's weights, by file."""
    earlier = earlier_of(path)
    return {
        file.relative_to(earlier.folder).as_posix(): found
        for file, found in zip(earlier.files, hashes_of(earlier.files), strict=True)
    }


def contents_of_data(source: Source) -> Mapping[str, str]:
    """What the files of a source hold together, or held when it was precomputed and they were there.

    Nothing of a source that reads none, or does not say which.
    """
    first = sources_in(source)[0]
    known: Mapping[str, str] | None = getattr(getattr(first, "records", None), "contents", None)
    if known is not None:
        return known
    files = tuple(source.reads)
    return contents_of(files, Path(source.path)) if files else {}  # type: ignore[attr-defined]
