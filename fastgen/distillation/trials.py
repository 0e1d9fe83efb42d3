"""The largest micro batch of every stage that fits its device: trials, of which nothing is kept."""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..config.schema import Config
from ..engine.distributed import parallel
from ..engine.exhaustion import memory_told
from ..engine.run import Run
from ..errors import NoMemoryError, UserError
from ..planning.cards import GIB
from .distil import ready

CYCLES = 2
"""Of a trial: the moments that the first one makes are there in the second."""


def find_batches(config: Config, *, recipes: Path) -> Iterator[str]:
    """Lines of text: of every stage the largest `train.micro_batch` whose cycles fit, and what it takes.

    Args:
        config: settings of the run, whose folder stays as it is.
        recipes: folder that `teacher.recipe` is relative to.

    Raises:
        UserError: several processes, the run cannot work, or not even single samples fit.
    """
    if parallel():
        raise UserError("--find-batch tries micro batches out in one process: start it without torchrun or accelerate")
    with TemporaryDirectory() as folder, ready(_elsewhere(config, Path(folder)), recipes=recipes) as made:
        run = made.run
        for index, stage in enumerate(config.stages):
            peaks: dict[int, float] = {}
            sizes = [size for size in range(1, stage.train.batch + 1) if stage.train.batch % size == 0]
            best = largest(sizes, partial(_fits, run, index, peaks))
            if best is None:
                raise UserError(
                    f"stage {stage.name!r} does not fit {run.accelerator.device} even with micro batches of one "
                    "sample: `fastgen plan` names the settings that save memory"
                )
            took = f", with a peak of {peaks[best] / GIB:.1f} GiB" if peaks[best] else ""
            told = f"stages.{index}.train.micro_batch={best}"
            yield f"stage {index}, {stage.name}: {told} fits{took}, of a batch of {stage.train.batch}"


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending sizes that fits, None where none does; what is larger than one that does not, neither.

    It is sought by doubling the place among the sizes, and then by halves.
    """
    low, high, place = -1, len(sizes), 0
    while place < high:
        if not fits(sizes[place]):
            high = place
            break
        low, place = place, 2 * place + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else None


def _elsewhere(config: Config, folder: Path) -> Config:
    """The run in a folder of its own, where it leaves no log, and exports nothing."""
    log, export = config.log.model_copy(update={"trackers": ()}), config.export.model_copy(update={"path": None})
    return config.model_copy(update={"out": folder, "log": log, "export": export})


def _with(run: Run, index: int, size: int) -> Run:
    """The same run with that micro batch in a stage, and no more pairs of the teacher than a batch."""
    config, stage = run.config, run.config.stages[index]
    stage = stage.model_copy(update={"train": stage.train.model_copy(update={"micro_batch": size})})
    stages = (*config.stages[:index], stage, *config.stages[index + 1 :])
    pairs = config.pairs.model_copy(update={"count": stage.train.batch})
    changed = config.model_copy(update={"stages": stages, "pairs": pairs})
    return Run(changed, run.pipeline, plan=run.plan, accelerator=run.accelerator, preview=None)


def _fits(run: Run, index: int, peaks: dict[int, float], size: int) -> bool:
    """Whether cycles with that micro batch find enough memory; `peaks` then has the bytes that they took on a GPU."""
    device = run.accelerator.device
    gc.collect()  # what the trial before left
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with memory_told("a trial", stage=index):
            _train(_with(run, index, size), index)
    except NoMemoryError:
        return False
    peaks[size] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0.0
    return True


def _train(run: Run, index: int) -> None:
    stage = run.stage(index, None)
    for _ in range(CYCLES):
        stage.cycle()
