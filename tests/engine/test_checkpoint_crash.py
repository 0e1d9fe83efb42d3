"""Checkpoints when the process is killed, or the system refuses to write, in the middle of a save."""

import multiprocessing
import os
import resource
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file

from fastgen.engine import checkpoint
from fastgen.engine.checkpoint import Snapshot, load, load_newest, newest, save
from fastgen.errors import CheckpointError

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}  # audit events


def snapshot(value, size=64):
    weight = torch.full((size,), value)
    return Snapshot({"generator": {"weight": weight}, "ema": {"weight": weight}}, {"images": value})


def value_of(found):
    """The value a `snapshot(value)` was made with, once all its parts agree on it."""
    value = found.state["images"]
    assert torch.equal(found.tensors["generator"]["weight"], torch.full((64,), value))
    assert torch.equal(found.tensors["ema"]["weight"], torch.full((64,), value))
    return value


def refuse_warnings(message):
    pytest.fail(f"an undamaged checkpoint was skipped: {message}")


def steps(root):
    return sorted(int(path.name) for path in root.iterdir())


def save_with_small_files(root):
    """In a process of its own: the system refuses files beyond 1 kB, while safetensors writes one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        save(root, 2, snapshot(2.0, size=10_000), keep=1)
    except CheckpointError as error:
        os._exit(3 if "File too large" in str(error) and "needs 80,000 bytes" in str(error) else 4)


def save_and_die(root, step, at):
    """In a process of its own: kill -9 before the `at`-th change that saving makes in the file system."""
    changes = 0

    def hook(event, arguments):
        nonlocal changes
        created = event == "open" and arguments[2] & os.O_CREAT and str(root) in str(arguments[0])
        if not created and event not in CHANGES:
            return
        if changes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    sys.addaudithook(hook)
    save(root, step, snapshot(2.0), keep=1)


def save_half_a_file_and_die(root, step, at):
    """In a process of its own: kill -9 when half of the `at`-th tensor file is on the disk."""
    written = 0

    def write(tensors, path):
        nonlocal written
        save_file(tensors, path)
        if written == at:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1

    checkpoint.save_file = write
    save(root, step, snapshot(2.0), keep=1)


@pytest.fixture(scope="module")
def fork():
    """Runs a function of this file in a fresh process that has torch loaded; returns its exit code."""
    context = multiprocessing.get_context("forkserver")

    def run(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return run


def test_a_write_that_the_system_refuses_is_explained_and_loses_nothing(tmp_path, fork):
    save(tmp_path, 1, snapshot(1.0), keep=1)
    assert fork(save_with_small_files, tmp_path) == 3
    assert steps(tmp_path) == [1]
    assert value_of(load_newest(tmp_path, warn=refuse_warnings).snapshot) == 1.0


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(("killer", "fewest"), [(save_and_die, 10), (save_half_a_file_and_die, 2)])
def test_kill_9_anywhere_in_a_save_leaves_one_whole_checkpoint(tmp_path, fork, killer, fewest, step):
    """Step 2 succeeds step 1; step 1 replaces itself, which passes through two renames."""
    outcomes = []
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        root = tmp_path / str(len(outcomes))
        save(root, 1, snapshot(1.0), keep=1)
        code = fork(killer, root, step, len(outcomes))
        whole = newest(root)
        found = load_newest(root, warn=refuse_warnings)
        assert found.path == whole
        assert all(value_of(load(path)) in (1.0, 2.0) for path in root.iterdir())
        outcomes.append(value_of(found.snapshot))
        assert not list(root.rglob(".*"))
        save(root, 3, snapshot(3.0), keep=1)
        assert steps(root) == [3]
    assert code == 0
    assert len(outcomes) > fewest
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (1.0, 2.0)
