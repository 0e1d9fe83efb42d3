"""Manifests: what a folder held when it was written, so that damage is found before it is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .errors import CheckpointError
from .files import atomic_json, sha256_file

MANIFEST = "manifest.json"

REMEDY = "use an older checkpoint of the same run, or copy this one again from where it was made"


class ManifestError(CheckpointError):
    """A folder has no manifest.json, or one that cannot be read."""


class MissingFileError(CheckpointError):
    """A file that the manifest lists is not in the folder."""


class WrongSizeError(CheckpointError):
    """A file is shorter or longer than when it was written, usually a copy that was cut off."""


class WrongHashError(CheckpointError):
    """A file has its size but not its content, usually a flipped bit."""


@dataclass(frozen=True)
class FileRecord:
    """What a manifest knows of one file."""

    bytes: int
    sha256: str


def write_manifest(folder: Path, *, but: str = MANIFEST) -> None:
    """Record size and SHA-256 of every file below `folder` in its manifest.json.

    Args:
        but: pattern of names that are left out.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    known: dict[int, str] = {}  # of files that are one on the disk
    records = {}
    for path in files:
        if not fnmatch(path.name, but):
            state = path.stat()
            if state.st_ino not in known:
                known[state.st_ino] = sha256_file(path)
            records[path.relative_to(folder).as_posix()] = asdict(FileRecord(state.st_size, known[state.st_ino]))
    atomic_json(folder / MANIFEST, records)


def verify_sizes(folder: Path, *, remedy: str = REMEDY) -> dict[str, FileRecord]:
    """Check that every file of the manifest is there with its size, without reading it; `remedy` ends each error.

    Returns:
        The manifest: file name, relative to `folder`, to its record. Files it does not list are ignored.

    Raises:
        ManifestError: there is no manifest that can be read.
        MissingFileError: a file is not there.
        WrongSizeError: a file has another size.
    """
    records = _read_manifest(folder, remedy)
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            raise MissingFileError(f"{path} is missing, but {MANIFEST} lists it; {remedy}")
        actual = path.stat().st_size
        if actual != record.bytes:
            raise WrongSizeError(
                f"{path} has {actual} bytes, but {record.bytes} bytes (sha256 {record.sha256}) were "
                f"written: it was probably cut off; {remedy}"
            )
    return records


def verify_manifest(folder: Path, *, remedy: str = REMEDY) -> dict[str, FileRecord]:
    """Check presence, size and SHA-256 of every file of the manifest, which it returns; `remedy` ends each error.

    Raises:
        ManifestError: there is no manifest that can be read.
        MissingFileError: a file is not there.
        WrongSizeError: a file has another size.
        WrongHashError: a file has other content.
    """
    records = verify_sizes(folder, remedy=remedy)
    for name, record in records.items():
        actual = sha256_file(folder / name)
        if actual != record.sha256:
            raise WrongHashError(
                f"{folder / name} has its {record.bytes} bytes, but sha256 {actual} instead of "
                f"{record.sha256}: its content changed after it was written; {remedy}"
            )
    return records


def _read_manifest(folder: Path, remedy: str) -> dict[str, FileRecord]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ManifestError(f"{folder} has no {MANIFEST}, so it cannot be told whether it is whole; {remedy}")
    try:
        records = TypeAdapter(dict[str, FileRecord]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ManifestError(f"{path} is not a manifest ({error.errors()[0]['msg']}); {remedy}") from None
    for name in map(Path, records):
        if name.is_absolute() or ".." in name.parts:
            raise ManifestError(f"{path} lists {str(name)!r}, which lies outside its folder; {remedy}")
    return records
