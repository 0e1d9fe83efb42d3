"""Hashes of files: remembered while a file is not written, and of many files together."""

import os
import random
from pathlib import Path

import pytest

from fastgen import contents
from fastgen.contents import contents_of, hashes_of
from fastgen.files import sha256_file


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_FRESH_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is read."""
    seen: list[Path] = []

    def noted(file: Path) -> str:
        seen.append(file)
        return sha256_file(file)

    monkeypatch.setattr(contents, "sha256_file", noted)
    return seen


def written(file: Path, content: bytes = b"weights") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_file_is_read_once(tmp_path: Path, read: list[Path]):
    file = written(tmp_path / "a")
    assert hashes_of([file]) == hashes_of([file]) == [sha256_file(file)]
    assert read == [file]


def test_other_content_of_the_same_size_and_time_is_seen(tmp_path: Path):
    file = written(tmp_path / "a")
    before, (found,) = file.stat(), hashes_of([file])
    written(file, b"Weights")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes_of([file]) != [found]


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contents, "_FRESH_S", 60.0)
    file = written(tmp_path / "a")
    hashes_of([file, file])
    assert len(read) == 2


def test_what_the_hub_names_by_its_hash_is_not_read(tmp_path: Path, read: list[Path]):
    blob = written(tmp_path / "blobs" / ("0123456789abcdef" * 4))
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert hashes_of([tmp_path / "model.safetensors"]) == [blob.name]
    assert read == []


@pytest.mark.parametrize("spoil", [b"", b"{", b"[]", b'{"seen": 3}', b"\xff"])
def test_a_damaged_note_is_made_again(tmp_path: Path, kept: Path, spoil: bytes):
    file = written(tmp_path / "a")
    (found,) = hashes_of([file])
    (note,) = (kept / "sha256").iterdir()
    note.write_bytes(spoil)
    assert hashes_of([file]) == [found]


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(written(tmp_path / "a file")))
    file = written(tmp_path / "a")
    assert hashes_of([file]) == [sha256_file(file)]


def test_every_flipped_bit_of_many_files_is_seen(tmp_path: Path):
    files = [written(tmp_path / f"{i}.png", random.Random(i).randbytes(50)) for i in range(4)]
    whole = contents_of(files, tmp_path)
    assert (whole["files"], whole["bytes"]) == ("4", "200")
    for number in range(40):
        file, place = files[number % 4], number * 7 % 50
        content = file.read_bytes()
        written(file, content[:place] + bytes([content[place] ^ 1 << number % 8]) + content[place + 1 :])
        assert contents_of(files, tmp_path) != whole
        written(file, content)
    assert contents_of(files, tmp_path) == whole


def test_another_name_and_another_number_of_files_are_seen(tmp_path: Path):
    files = [written(tmp_path / "a" / f"{i}.png") for i in range(3)]
    whole = contents_of(files, tmp_path)
    assert contents_of(files[:2], tmp_path) != whole
    moved = files[2].rename(tmp_path / "a" / "3.png")
    assert contents_of([*files[:2], moved], tmp_path) != whole
    moved.rename(files[2])
    assert contents_of(files, tmp_path) == whole


def test_of_large_data_the_ends_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "CHEAP", 10)
    monkeypatch.setattr(contents, "ENDS", 4)
    file = written(tmp_path / "a.parquet", b"head, body, foot")
    whole = contents_of([file], tmp_path)
    assert contents_of([written(file, b"head, BODY, foot")], tmp_path) == whole
    assert contents_of([written(file, b"head, body, feet")], tmp_path) != whole
    monkeypatch.setattr(contents, "MOST_ENDS", 0)
    listed = contents_of([file], tmp_path)
    assert contents_of([written(file, b"HEAD, body, foot")], tmp_path) == listed
    assert contents_of([written(file, b"head, body, foot.")], tmp_path) != listed
