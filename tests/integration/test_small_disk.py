"""Runs on a disk that is really small: each ends in one paragraph and nothing is lost; with more room it goes on.

The disks are file systems in memory of some hundred KB, which only root may mount. Slow, since each size is two runs.
"""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_run
import tiny
import torch

from fastgen.command import guarded
from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.models.conditioning import Conditioning
from fastgen.models.pipelines.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")]
SHARES = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""Sizes of the disk, of all that the run leaves."""
WEIGHTS = "export/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    sized(place, 64, "")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # a file that is read by memory map may be open still


def sized(place: Path, kib: int, how: str = "remount,") -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{how}size={kib}k", "tmpfs", place], check=True)


def carried_out(config: Config, resume: bool, looks: bool, said: Path) -> None:
    """A run as a command has it; `looks` says whether it looks for room before it writes."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if not looks:
        shutil.disk_usage = lambda _: Namespace(free=2**40)  # type: ignore[assignment]

    def run(_: Namespace) -> None:
        distil(config, recipes=config.out.parent, resume=resume)

    sys.exit(guarded(run, Namespace(debug=False), goes_on="--resume"))


def run_on(place: Path, teacher: Path) -> Config:
    return small_run.run_config(
        teacher.parent,
        out=place / "run",
        export=place / "export",
        teacher={"path": str(teacher)},
        log={"every": 1, "previews": 2, "trackers": ["tensorboard"]},
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a teacher and a run that had room, and the KiB that it takes."""
    folder = tmp_path_factory.mktemp("straight")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    config = run_on(folder, folder / "teacher")
    assert small_run.in_processes(1, carried_out, config, False, True, folder / "said") == [0]
    size = sum(f.stat().st_size for kind in ("run", "export") for f in (folder / kind).rglob("*") if f.is_file())
    return folder, size // 1024


@pytest.mark.parametrize(("share", "looks"), [(0.35, True), (0.95, True), *((share, False) for share in SHARES)])
def test_a_run_on_a_small_disk_ends_in_words_and_goes_on_with_room(
    straight: tuple[Path, int], small: Path, share: float, looks: bool
):
    folder, needed = straight
    sized(small, max(8, int(share * needed)))
    config, said = run_on(small, folder / "teacher"), small.with_suffix(".said")
    (code,) = small_run.in_processes(1, carried_out, config, False, looks, said)
    words = said.read_text()
    print(f"{int(share * needed)} KiB of {needed}: exit code {code}; {words.strip().splitlines()[-1:]}")
    assert code in (0, 2, 3)
    assert "Traceback" not in words
    if code:
        assert "fastgen: error: " in words
        assert "free" in words, "how much there is"
    assert not [file for file in small.rglob(".*.tmp") if file.parent != config.out / "checkpoints"]
    sized(small, 8 * needed)
    (code,) = small_run.in_processes(1, carried_out, config, (config.out / "config.yaml").exists(), True, said)
    assert code == 0, said.read_text()
    assert (small / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (config.out / "log.jsonl").read_bytes() == (folder / "run/log.jsonl").read_bytes()


def test_prompts_that_do_not_fit_leave_no_file_in_part(small: Path):
    store = Store(small / "cache")
    rows = [(str(number), Conditioning(1, {"x": torch.full((1, 5_000), 1.0 * number)})) for number in range(8)]
    with pytest.raises(OSError, match="No space left") as caught:
        store.keep(rows)
    assert str(caught.value.filename).startswith(str(small / "cache"))
    assert not list((small / "cache").iterdir())
    sized(small, 1024)
    store.keep(rows)
    assert all(store.row(value) is not None for value, _ in rows)
