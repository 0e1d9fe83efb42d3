"""Atomic files and folders, what is left by dead writers, and manifests."""

import errno
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import save_file

from fastgen import files
from fastgen.errors import CheckpointError, UserError
from fastgen.files import atomic_folder, atomic_json, atomic_text, remove_folder, tidy
from fastgen.manifest import (
    MANIFEST,
    ManifestError,
    MissingFileError,
    WrongHashError,
    WrongSizeError,
    verify_manifest,
    verify_sizes,
    write_manifest,
)


def tree(folder):
    """Every entry below a folder, hidden ones too: relative name -> bytes, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def sibling_name(target, kind, *, host=None, pid=None, age_s=0.0):
    """The name a writer of that host, process and age gives its sibling."""
    born_ns = int((time.time() - age_s) * 1e9)
    return f".{target}.{host or files._host()}.{pid or os.getpid()}.{born_ns}.{kind}"


@pytest.fixture(scope="module")
def dead_pid():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def refused_fsync(monkeypatch):
    """A disk that turns out to be full when data are flushed."""

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_text_and_json_replace_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "n\u00e4me.json"
    atomic_text(path, "first")
    atomic_json(path, {"caf\u00e9": [1, None, 0.1]})
    assert json.loads(path.read_text(encoding="ascii")) == {"caf\u00e9": [1, None, 0.1]}
    assert list(tmp_path.rglob("*.tmp")) == []


def test_text_follows_a_link_instead_of_replacing_it(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    atomic_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "through"


@pytest.mark.parametrize("bad", [float("nan"), object(), {"a": float("inf")}])
def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path, bad):
    atomic_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        atomic_json(tmp_path / "a.json", bad)
    assert tree(tmp_path) == {"a.json": b"1\n"}


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, refused_fsync):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="No space"):
        atomic_text(tmp_path / "a.txt", "new")
    assert tree(tmp_path) == {"a.txt": b"old"}


def test_impossible_places_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write in .*file"):
        atomic_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(UserError, match="is a folder"):
        atomic_text(tmp_path, "x")
    with pytest.raises(UserError, match="is a file"), atomic_folder(tmp_path / "file", replace=True):
        pass
    assert tree(tmp_path) == {"file": b"x"}


def test_a_folder_is_flushed_before_it_is_renamed_and_its_parent_after(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), rename(a, b)))
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
    renamed = calls.index("rename")
    flushed = {os.path.relpath(name, folder) for name in calls[:renamed]}
    assert flushed == {".", "sub", "sub/a"}
    assert calls[renamed - 1] == str(folder)
    assert calls[renamed + 1 :] == [str(tmp_path)]


def test_an_exception_in_the_block_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")

    def interrupted():
        with atomic_folder(tmp_path / "out", replace=True) as folder:
            (folder / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tree(tmp_path) == {"out": None, "out/a": b"old"}


def test_an_occupied_folder_is_replaced_only_on_request(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(UserError, match="already holds files"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "b").write_text("2")
    assert tree(tmp_path) == {"out": None, "out/b": b"2"}


def test_a_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    rename = os.rename

    def refuse_tmp(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_tmp)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path / "out", replace=True):
        pass
    assert tree(tmp_path) == {"out": None, "out/a": b"old"}


@pytest.mark.parametrize("successor_stands", [False, True])
def test_a_folder_moved_aside_by_a_dead_run_returns_unless_its_successor_stands(tmp_path, dead_pid, successor_stands):
    aside = tmp_path / sibling_name("out", "old", pid=dead_pid)
    aside.mkdir()
    (aside / "a").write_text("old")
    if successor_stands:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("new")
    tidy(tmp_path)
    assert tree(tmp_path) == {"out": None, "out/a": b"new" if successor_stands else b"old"}


def test_the_next_writer_puts_back_a_folder_that_a_dead_run_moved_aside(tmp_path, dead_pid):
    aside = tmp_path / sibling_name("out", "old", pid=dead_pid)
    aside.mkdir()
    (aside / "a").write_text("old")
    with pytest.raises(UserError, match="already holds files"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"out": None, "out/a": b"old"}


def test_only_temporaries_of_dead_writers_are_deleted(tmp_path, dead_pid):
    dead = [
        sibling_name("a.json", "tmp", pid=dead_pid),
        sibling_name("b", "tmp", age_s=time.time() - psutil.Process().create_time() + 60),
        sibling_name("c", "tmp", host="elsewhere", age_s=2 * 86_400),
    ]
    kept = [
        sibling_name("a.json", "tmp"),
        sibling_name("c", "tmp", host="elsewhere"),
        ".hidden.tmp",
        "a.json",
    ]
    for name in dead + kept:
        (tmp_path / name).write_text("x")
    tidy(tmp_path)
    assert set(tree(tmp_path)) == set(kept)


def test_a_temporary_of_a_zombie_is_deleted(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    (tmp_path / sibling_name("a", "tmp", pid=process.pid)).write_text("x")
    tidy(tmp_path)
    process.wait()
    assert tree(tmp_path) == {}


def test_a_deletion_cut_short_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("x")

    def refuse(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="Input/output"):
        remove_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def listed(tmp_path):
    """A folder of two files with its manifest."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "b.txt").write_text("b")
    write_manifest(tmp_path)
    return tmp_path


def test_an_intact_folder_passes_and_unlisted_files_are_ignored(listed):
    (listed / "later.txt").write_text("x")
    assert set(verify_manifest(listed)) == {"sub/a.bin", "b.txt"}


def test_each_kind_of_damage_has_its_own_error(listed):
    target = listed / "sub" / "a.bin"
    whole = target.read_bytes()

    for bit in (0, 8 * 128 + 3, 8 * 256 - 1):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        target.write_bytes(flipped)
        verify_sizes(listed)
        with pytest.raises(WrongHashError, match=r"a\.bin has its 256 bytes, but sha256"):
            verify_manifest(listed)
    for cut in (b"", whole[:-1], whole + b"\0"):
        target.write_bytes(cut)
        with pytest.raises(WrongSizeError, match=rf"a\.bin has {len(cut)} bytes, but 256 bytes"):
            verify_sizes(listed)
    target.unlink()
    with pytest.raises(MissingFileError, match=r"a\.bin is missing"):
        verify_sizes(listed)
    (listed / MANIFEST).unlink()
    with pytest.raises(ManifestError, match=f"no {MANIFEST}"):
        verify_sizes(listed)
    errors = (WrongHashError, WrongSizeError, MissingFileError, ManifestError)
    assert all(issubclass(error, CheckpointError) for error in errors)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"b.txt": {"bytes": 1',
        "[]",
        '{"b.txt": {"bytes": "many", "sha256": ""}}',
        '{"../b.txt": {"bytes": 1, "sha256": ""}}',
        '{"/b.txt": {"bytes": 1, "sha256": ""}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(listed, text):
    (listed / MANIFEST).write_text(text)
    with pytest.raises(ManifestError):
        verify_sizes(listed)


def test_files_of_a_folder_have_the_modes_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "student") as folder:
            (folder / "unet").mkdir()
            save_file({"w": torch.zeros(1)}, folder / "unet" / "weights.safetensors")
            (folder / "private.json").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "student").rglob("*")}
    assert modes == {"unet": 0o750, "weights.safetensors": 0o640, "private.json": 0o640}
