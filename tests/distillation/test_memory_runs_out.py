"""Memory that runs out is told in words, with what would take less; and the largest micro batch that fits is found."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import small_run
import tiny
import torch

from fastgen.config.schema import Config
from fastgen.distillation import exhausted
from fastgen.distillation.costs import forecast_of
from fastgen.distillation.distil import distil
from fastgen.distillation.trials import find_batches, largest
from fastgen.engine.exhaustion import memory_told
from fastgen.engine.stage import Stage
from fastgen.errors import NoMemoryError, UserError, ran_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    return folder


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_every_way_of_having_too_little_memory_is_known():
    said = r"memory ran out in a test \(RuntimeError: .*allocate.*train.micro_batch"
    with pytest.raises(NoMemoryError, match=said), memory_told("a test", stage=0):
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert ran_out(MemoryError())
    assert ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert ran_out(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ValueError, match="no memory of that"), memory_told("a test", stage=0):
        raise ValueError("no memory of that")


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_largest_size_is_found_by_few_trials(count: int):
    sizes = [3 * place + 1 for place in range(count)]
    for limit in range(-1, sizes[-1] + 2):
        tried: list[int] = []
        best = largest(sizes, lambda size, limit=limit, tried=tried: tried.append(size) or size <= limit)
        assert best == max((size for size in sizes if size <= limit), default=None)
        assert len(tried) == len(set(tried)) <= 2 * math.log2(count) + 2


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Micro batches of more than so many samples find too little memory; gives the list of those tried."""

    def limit(most: int) -> list[int]:
        tried: list[int] = []

        def cycle(stage: Stage) -> None:
            tried.append(stage.micro)
            if stage.micro > most:
                full()

        monkeypatch.setattr(Stage, "cycle", cycle)
        return tried

    return limit


def batches(config: Config) -> list[str]:
    return list(find_batches(config, recipes=config.out.parent))


def test_the_largest_micro_batch_of_every_stage_is_found_and_nothing_is_left(
    folder: Path, limited: Callable[[int], list[int]]
):
    tried = limited(3)
    stages = [{"objective": {"name": name}, "train": {"images": 24, "batch": 12}} for name in ("kd", "dmd2")]
    config = small_run.run_config(folder, stages=stages, cache=None)
    first, second = batches(config)
    assert first == "stage 0, kd: stages.0.train.micro_batch=3 fits, of a batch of 12"
    assert second == "stage 1, dmd2: stages.1.train.micro_batch=3 fits, of a batch of 12"
    assert tried == 2 * [1, 1, 2, 2, 4, 3, 3]
    assert not config.out.exists()
    limited(0)
    with pytest.raises(UserError, match="stage 'kd' does not fit cpu even with micro batches of one sample"):
        batches(config)


@pytest.mark.slow  # a plan is made: ten seconds
def test_a_step_without_memory_names_the_parts_and_what_takes_less(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Stage, "cycle", full)
    stages = [{"objective": {"name": "dmd2"}, "train": {"images": 24, "batch": 12, "micro_batch": 6}}]
    config = small_run.run_config(folder, stages=stages, cache=None)
    plans: list[object] = []
    monkeypatch.setattr(exhausted, "forecast_of", lambda *a, **k: plans.append(a) or forecast_of(*a, **k))
    with pytest.raises(NoMemoryError) as error:
        distil(config, recipes=folder)
    assert len(plans) == 1, "of each takes ten seconds"
    said = str(error.value)
    assert said.startswith("memory ran out in cycle 0 of stage 'dmd2' (OutOfMemoryError: CUDA out of memory. Tried to")
    assert "By the plan it needs" in said
    assert "most of it for " in said
    assert "What takes less: train.micro_batch=1 (saves about " in said, "graphs keep as much for each sample"
    assert "train.cuda_graphs=false" in said
    assert "train.gradient_checkpointing=true (most of the activations)" in said
    assert "--find-batch" in said
    saved = [float(part.split()[0]) for part in said.split("(saves about ")[1:]]
    assert len(saved) == 3
    assert saved == sorted(saved, reverse=True)
    assert error.value.exit_code == 2
