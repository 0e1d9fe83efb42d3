"""Images in zip archives and in tar shards."""

import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fastgen.data.decode import SUFFIXES
from fastgen.data.tars import members
from fastgen.errors import UserError
from fastgen.limits import Cap

from . import manifests
from .encoded import EncodedImage, is_image
from .manifests import Entry

LABELS = "dataset.json"


@dataclass(frozen=True)
class ZipImages:
    """Image files of a zip archive, chosen and ordered as those of a folder.

    Labels may also come from a `dataset.json`, which StyleGAN and EDM write: {"labels": [[name, class], ...]}.
    """

    file: Path

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError(f"archive {self.file} holds no image ({' '.join(sorted(SUFFIXES))}); give another one")

    @property
    def prompts(self) -> tuple[str, ...] | None:
        with self._open() as archive:
            return manifests.prompts(self._entries(archive))

    def __len__(self) -> int:
        with self._open() as archive:
            return len(self._entries(archive))

    def __iter__(self) -> Iterator[EncodedImage]:
        with self._open() as archive:
            labels, there = self._labels(archive), {member.filename: member for member in archive.infolist()}
            for entry in self._entries(archive):
                member = there.get(entry.file)
                content = b"" if member is None else self._image(archive, member)
                label = labels.get(entry.file, entry.label)
                yield EncodedImage(f"{entry.file} of {self.file}", content, label, entry.prompt, entry.flags)

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.file)
        except Exception as error:  # of damaged bytes: OSError, BadZipFile, NotImplementedError, ValueError ...
            raise UserError(f"{self.file} cannot be read as a zip archive ({error}); copy it again") from error

    def _entries(self, archive: zipfile.ZipFile) -> list[Entry]:
        names = archive.namelist()
        manifest = manifests.highest(names)
        if manifest is None:
            return [Entry(name) for name in sorted(names, key=manifests.naturally) if is_image(PurePosixPath(name))]
        named = manifests.read(f"{self.file}/{manifest}", self._text(archive, manifest))
        return [replace(entry, file=str(PurePosixPath(manifest).parent / entry.file)) for entry in named]

    def _image(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        if member.file_size > Cap.IMAGE.most:
            return b""  # as of a damaged or encrypted one: an empty image, which decoding refuses by name
        try:
            return archive.read(member)
        except Exception:  # OSError, RuntimeError, NotImplementedError, BadZipFile, zlib.error ...
            return b""

    def _text(self, archive: zipfile.ZipFile, name: str) -> bytes:
        where = f"{name} of {self.file}"
        Cap.JSON.check(archive.getinfo(name).file_size, where)
        try:
            return archive.read(name)
        except Exception as error:  # likewise
            raise UserError(f"{where} cannot be read ({error}); copy the archive again") from error

    def _labels(self, archive: zipfile.ZipFile) -> dict[str, int]:
        if LABELS not in archive.namelist():
            return {}
        return manifests.labels(f"{LABELS} of {self.file}", self._text(archive, LABELS))


@dataclass(frozen=True)
class TarImages:
    """Images of webdataset shards (.tar) in the order of the shards and of their members.

    Members that share a name up to its first dot belong together: `0001.png` and its class `0001.cls`.
    """

    shards: tuple[Path, ...]
    prompts: None = None

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError(f"shard {self.shards[0]} holds no image ({' '.join(sorted(SUFFIXES))}); give another one")

    def __len__(self) -> int:
        return sum(is_image(PurePosixPath(member.name)) for _, _, member in self._members())

    def __iter__(self) -> Iterator[EncodedImage]:
        key, image, label = "", None, None
        for shard, archive, member in self._members():
            path = PurePosixPath(member.name)
            own = f"{shard}:{path.parent / path.name.partition('.')[0]}"
            if own != key:
                if image is not None:
                    yield EncodedImage(*image, label)
                key, image, label = own, None, None
            if is_image(path):
                image = (f"{member.name} of {shard}", _tar_content(archive, member, Cap.IMAGE))
            elif path.suffix == ".cls":
                label = manifests.class_number(f"{member.name} of {shard}", _tar_content(archive, member, Cap.NUMBER))
        if image is not None:
            yield EncodedImage(*image, label)

    def _members(self) -> Iterator[tuple[Path, tarfile.TarFile, tarfile.TarInfo]]:
        for shard in self.shards:
            for archive, member in members(shard):
                yield shard, archive, member


def _tar_content(archive: tarfile.TarFile, member: tarfile.TarInfo, cap: Cap) -> bytes:
    if member.size > cap.most:
        return b""
    try:
        stream = archive.extractfile(member)
        return stream.read() if stream else b""
    except Exception:  # as of a zip's image
        return b""
