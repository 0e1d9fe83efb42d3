"""A card whose memory really runs out, since this process may have a small part of it alone."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_run
import tiny
import torch

from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.distillation.trials import find_batches
from fastgen.errors import NoMemoryError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
ALLOWED = 384 * 2**20
LIBRARIES = 80 * 2**20
"""Bytes that cuBLAS and cuDNN may keep for good, which is a tenth of what the run holds that fails."""
WHOLE = 1024
"""Samples of a batch, which in one piece take three times what is allowed."""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Beside what other tests have left, this process gets `ALLOWED` bytes of the card."""
    free()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ALLOWED) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def free() -> int:
    """Bytes of the card that are held once all that can be freed is, the workspaces of matrix products too."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def wide(folder: Path, *, micro_batch: int, out: str) -> Config:
    """Two cycles of DMD2 on large batches of a tiny network."""
    train = {"images": 2 * WHOLE, "batch": WHOLE, "micro_batch": micro_batch}
    stages = [{"objective": {"name": "dmd2", "ratio": 1}, "train": train}]
    return small_run.run_config(folder, device="cuda", out=folder / out, student={"steps": [1]}, stages=stages)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    return tmp_path


@pytest.mark.usefixtures("little_memory")
def test_a_run_that_finds_too_little_says_so_frees_all_and_one_that_takes_less_ends(folder: Path):
    before = free()
    with pytest.raises(NoMemoryError) as error:
        distil(wide(folder, micro_batch=WHOLE, out="too large"), recipes=folder)
    said = str(error.value)
    assert said.startswith("memory ran out in cycle 0 of stage 'dmd2' (OutOfMemoryError: CUDA out of memory. Tried to")
    assert "By the plan it needs" in said
    assert "most of it for what graphs keep" in said
    assert "What takes less: train.micro_batch=1 (saves about " in said
    assert error.value.exit_code == 2
    del error
    assert free() < before + LIBRARIES
    assert distil(wide(folder, micro_batch=8, out="small"), recipes=folder).is_dir()
    assert free() < before + LIBRARIES


@pytest.mark.usefixtures("little_memory")
def test_the_largest_micro_batch_that_a_card_has_room_for_is_found(folder: Path):
    (told,) = find_batches(wide(folder, micro_batch=WHOLE, out="tried"), recipes=folder)
    best = int(told.partition("micro_batch=")[2].split()[0])
    assert 8 <= best < WHOLE
    assert told.endswith(f"GiB, of a batch of {WHOLE}")
