"""One run per folder: who holds a lock is named, a killed one's is taken over, another host's only knowingly."""

import errno
import json
import os
import signal
import time

import pytest

from fastgen.errors import UserError
from fastgen.lock import held


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def locked(folder, **settings):
    return held({folder: folder / ".lock"}, **settings)


def forked(work):
    """A fork that does this work and then sleeps; returns once the work is done."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: (os.write(write, b"."), time.sleep(20)))
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"."
    os.close(read)
    return child


def killed(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_full_disk_is_told_by_the_file_of_the_lock(out, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as refused, locked(out):
        pass
    assert refused.value.filename == str(out / ".lock")
    monkeypatch.undo()
    with locked(out):
        assert (out / ".lock").exists(), "it is free again"


def test_a_second_run_is_refused_with_the_first_ones_process_and_host(out):
    with locked(out):
        holder = json.loads((out / ".lock").read_text())
        assert holder["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()} on {holder['host']}, since 2"):
            locked(out, take_over=True).__enter__()
    with locked(out):
        pass


def test_nothing_is_left_of_a_run_that_wrote_nothing_and_all_of_one_that_did(out):
    with locked(out):
        pass
    assert not out.exists()
    with locked(out):
        (out / "log.jsonl").touch()
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_the_lock_of_a_killed_run_is_taken_over_and_said(out, caplog):
    def work(then):
        with locked(out):
            then()

    child = forked(work)
    with pytest.raises(UserError, match=f"process {child} on "):
        locked(out).__enter__()
    killed(child)
    assert (out / ".lock").exists()
    with caplog.at_level("INFO", logger="fastgen"), locked(out):
        assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
    assert f"was left behind by process {child} on " in caplog.text


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(out):
    with locked(out):
        worker = forked(lambda then: then())
    try:
        with locked(out):
            pass
    finally:
        killed(worker)


def test_another_hosts_lock_is_taken_over_knowingly_alone(out):
    out.mkdir()
    left = json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01"})
    (out / ".lock").write_text(left)
    with pytest.raises(UserError, match=r"process 7 on elsewhere, since 2026-01-01.*--take-over"):
        locked(out).__enter__()
    assert (out / ".lock").read_text() == left
    with locked(out, take_over=True):
        pass
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"pid": 1}', "\x00\xff"])
def test_a_lock_that_names_nobody_is_free(out, left):
    out.mkdir()
    (out / ".lock").write_text(left)
    with locked(out):
        pass


def test_of_many_that_come_and_go_one_at_a_time_holds_it(out):
    out.mkdir()

    def contend():
        for _ in range(200):
            try:
                with locked(out):
                    mine = out / "mine"
                    os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
                    mine.unlink()
            except UserError:
                continue
        os._exit(0)

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                contend()
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file, which is a file: give a folder"):
        locked(tmp_path / "file").__enter__()
