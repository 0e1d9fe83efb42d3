"""Images that processes decode: the same as threads', some batches ahead, and what ends a process is said."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from PIL import Image

from fastgen.data import ImageFolder, Loader, Mixture, Noise
from fastgen.data.buckets import Buckets
from fastgen.data.workers import decodes
from fastgen.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Forty images of several shapes, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        shape = (24, 16) if number % 3 else (16, 24)
        image = Image.effect_noise(shape, 60).convert("RGB")
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"number {number}")
    (folder / "07.png").write_bytes(b"damaged")
    return ImageFolder(folder, 16)


def taken(loader, starts, count=8):
    return [loader.take(start, count) for start in starts]


def alike(one, other):
    assert torch.equal(one.images, other.images)
    assert (one.prompts, one.numbers, one.size) == (other.prompts, other.numbers, other.size)


def test_a_stream_is_the_same_whoever_decodes_it(source):
    """One pool for all that follows, since each takes seconds to start: of buckets, mirrored, with jumps."""
    bucketed = replace(source, buckets=Buckets(step=8))
    mixed = Mixture((bucketed, replace(bucketed, background="black")), (2.0, 1.0))
    told = {"seed": 3, "batch": 8, "flip": True, "dropout": 0.3}
    plain, workers = Loader(mixed, **told), Loader(mixed, **told, workers=1)
    starts = [0, 8, 16, 48, 56, 24, 32, 80, 120, 160, 200]
    for one, other in zip(taken(plain, starts), taken(workers, starts), strict=True):
        alike(one, other)
    assert len(workers._ahead) == 2
    assert plain.waited > 0


def test_an_ended_process_is_said_and_not_waited_for(source):
    before = set(psutil.Process().children(recursive=True))
    loader = Loader(source, seed=0, workers=1)
    loader.take(0, 4)
    fresh = [one for one in psutil.Process().children(recursive=True) if one not in before]
    fresh[-1].send_signal(signal.SIGKILL)
    time.sleep(0.3)
    with pytest.raises(UserError, match="a process that decodes images was ended"):
        taken(loader, range(4, 40, 4), 4)


@pytest.mark.slow  # starts a process with processes of its own
def test_who_decodes_ends_with_a_parent_that_is_killed(source):
    script = (
        "import sys, time; from pathlib import Path; from fastgen.data import ImageFolder, Loader\n"
        "Loader(ImageFolder(Path(sys.argv[1]), 16), seed=0, workers=1).take(0, 4); print('there', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(source.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "there\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert len(started) >= 2
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    assert not left


def test_sources_that_no_process_can_decode_are_left_to_threads(source):
    assert decodes(source)
    assert not decodes(Noise(3))
    assert not decodes(Mixture((source, Noise(3)), (1.0, 1.0)))
    assert Loader(Noise(3), seed=0, workers=2).take(0, 3).labels is not None
