"""A disk that is full is one paragraph with the file; nothing partial stays, and what was there is whole."""

import errno
import json
import os
import stat
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from eval.measures.frechet import Statistics
from eval.measures.statistics_file import save_statistics
from fastgen.command import guarded
from fastgen.disk import check_writable, named, require_space
from fastgen.engine import pairs
from fastgen.engine.log import RunLog
from fastgen.errors import UserError
from fastgen.files import atomic_folder, atomic_json, atomic_text


def told(run, capsys: pytest.CaptureFixture) -> str:
    """The paragraph in which a command says that it could not write."""
    assert guarded(lambda _: run(), Namespace(debug=False)) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "free there" in err
    return err


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_text_a_folder_and_statistics_name_their_file_and_leave_nothing(
    full: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "report.html").write_text("old")

    def folder() -> None:
        with atomic_folder(tmp_path / "student") as place:
            (place / "weights").write_bytes(bytes(1234))

    statistics = Statistics(torch.zeros(2), torch.eye(2), 3, None)
    assert f"{tmp_path}/report.html could not be written: No space left" in told(
        lambda: atomic_text(tmp_path / "report.html", "new"), capsys
    )
    assert f"{tmp_path}/student could not be written: No space left on device after 1,234 bytes" in told(folder, capsys)
    assert "metrics.json could not" in told(lambda: atomic_json(tmp_path / "metrics.json", {}), capsys)
    assert "s.npz could not" in told(lambda: save_statistics(tmp_path / "s.npz", statistics), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_library_that_words_it_in_its_own_way_is_understood(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, named(tmp_path / "pairs"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "pairs"))
    with pytest.raises(SafetensorError), named(tmp_path):
        raise SafetensorError("header too large")


def test_what_does_not_fit_says_its_bytes_before_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=10))
    words = told(lambda: require_space(tmp_path / "pairs", 5000), capsys)
    assert f"{tmp_path}/pairs could not be written: No space left on device, of 5,000 bytes that it needs" in words
    monkeypatch.setattr(pairs, "_sampled", lambda *_: pytest.fail("hours of sampling before it is said"))
    teacher, spec = SimpleNamespace(shape=(3,)), SimpleNamespace(count=4)
    accelerator = SimpleNamespace(device="cpu")
    made = lambda: pairs.teacher_pairs(  # noqa: E731
        tmp_path / "p", teacher, None, spec, loader=None, key="k", accelerator=accelerator
    )
    assert "/p/pairs.safetensors could not be written: No space left on device, of 96 bytes" in told(made, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog(SimpleNamespace(is_main_process=True, log=lambda *_, **__: None), tmp_path)
    assert "log.jsonl could not be written" in told(lambda: log.write(stage=0, cycle=0, step=0, values={}), capsys)


def test_folders_are_as_open_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "x") as place:
            save_file({"a": torch.zeros(2)}, place / "a.safetensors")
            np.save(place / "b.npy", np.zeros(2))
            (place / "c.json").write_text(json.dumps({}))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "x").iterdir()} == {0o640}


def test_a_place_is_looked_at_without_being_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c", "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out is .*/file/x, but .*/file is a file"):
        check_writable(tmp_path / "file/x", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
