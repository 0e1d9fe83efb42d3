"""Proof that an isolated process samples an export as it was trained."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import NoRoomError, NotInPartsError, UserError, VerificationError, shortage
from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.head_bank import Headed
from ..models.pipelines.canonical import unit
from ..models.pipelines.notes import Stop
from ..models.pipelines.stacked import StackedLoRA
from ..models.precision import full_precision
from ..models.walk import Sampler, sample
from . import stock_process
from .place import CPU, Place, give_back, needing_room
from .scheduler_export import TOLERANCE as TIMESTEP_TOLERANCE
from .scheduler_export import SchedulerExport
from .stock_schedulers import noise_factors

TOLERANCE = 1e-5
KERNELS = 1e-4  # most that kernels may round; a wrong scheduler is at least ten times further off
SEEDS = (0, 1, 2)
ENDED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""Signals by which others end a process, the system or its guards where memory is short among them."""


@dataclass(frozen=True)
class Agreement:
    """Largest difference between the stock pipeline's samples and ours, relative to the largest value.

    Compared as the last scheduler step leaves them: decoded images are clamped, which hides differences.

    Attributes:
        rounding: the same between the stock pipeline and the trained weights, where those were rounded for the file.
    """

    steps: int
    difference: float
    rounding: float | None = None


@dataclass(frozen=True)
class Export:
    """What an isolated process loads.

    Args:
        pipeline: folder of a whole pipeline.
        variant: variant of its weight files; None for the plain ones.
        loras: stacked on it, in this order.
        scheduler: folder of the scheduler that replaces the pipeline's own; None where it is exported with it.
        heads: file of last layers that the steps have, see `StepHeads`; None where all have the pipeline's own.
    """

    pipeline: str
    loras: tuple[StackedLoRA, ...] = ()
    scheduler: str | None = None
    variant: str | None = None
    heads: str | None = None

    @property
    def verified(self) -> str:
        """The folder that this is about: of the LoRA on top, or of the pipeline."""
        return self.loras[-1].folder if self.loras else self.pipeline


@dataclass(frozen=True)
class Ours:
    """The student as training knows it; nothing of it comes from the export.

    Args:
        model: makes the trained generator, float32, on the device that the export is sampled on.
        cond: what it is told, one row for each seed.
        calls: what the stock call is told for each seed: prompt or labels as lists of one, size, guidance.
        sampler: sampler that was trained for.
        stops: step count -> where it was trained to stop.
        seeds: one for each row.
        trained: makes the generator before its weights were rounded for the file; None where `model` is not rounded.
        heads: step count -> weights of the last layer at its stops, where each has its own.
    """

    model: Callable[[], Denoiser]
    cond: Conditioning
    calls: Sequence[Mapping[str, Any]]
    sampler: Sampler
    stops: Mapping[int, Sequence[Stop]]
    seeds: Sequence[int] = SEEDS
    trained: Callable[[], Denoiser] | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict)

    def made(self) -> "Ours":
        """The same, whose generator is made now and not again."""
        model = self.model()
        return replace(self, model=lambda: model)

    def at(self, n: int) -> Denoiser:
        """The generator that takes n steps."""
        model = self.model()
        if n not in self.heads:
            return model
        times = [stop.time for stop in self.stops[n]]
        return Headed(model, dict(zip(times, self.heads[n], strict=True)))


def verify(export: Export, schedule: SchedulerExport, ours: Ours, *, place: Place = CPU) -> list[Agreement]:
    """Samples the export in a fresh process that knows only Diffusers, and compares for each step count served.

    The isolated process has the place to itself: the models here are made when it is over, one after the other.

    Args:
        export: what the isolated process loads.
        schedule: scheduler of the export, and the step counts that it serves.
        ours: the student as training knows it.
        place: where the isolated process samples, and how; `ours` makes its models there.

    Raises:
        NoRoomError: the isolated process or the models here need more memory than there is.
        NotInPartsError: Diffusers does not sample the pipeline in parts, which says nothing of it as a whole.
        VerificationError: it stops elsewhere, starts from other noise, or ends more than 1e-5 of the largest value
            away (and what float32 rounds: where an EDM scheduler subtracts noise of sigma 80, and between the kernels
            of one sample, as the isolated process calls, and of several, as ours does, which a GPU chooses anew).
    """
    give_back(place.device)
    seen = _ask_isolated(export, schedule, ours, place)
    with needing_room():
        found = list(_agreements(export, schedule, ours.made(), seen))
        if ours.trained is None:
            return found
        give_back(place.device)
        return _rounded(found, schedule, replace(ours, model=ours.trained), seen)


def _agreements(
    export: Export, schedule: SchedulerExport, ours: Ours, seen: Mapping[str, Tensor]
) -> Iterator[Agreement]:
    """Yields the agreement at each step count, from what the isolated process saw."""
    for n in schedule.steps:
        rows = _rows(seen, ours, n)
        fault = _wrong_stops(rows[0]["timesteps"].tolist(), ours.stops[n]) or _wrong_noise(rows, schedule, ours, n)
        if fault:
            raise _failure(export, f"at {n} steps {fault}")
        samples = _samples(rows, schedule, ours, n)
        largest = float(samples.abs().max())
        difference = float((_ends(rows, schedule) - samples).abs().max()) / largest
        allowed = TOLERANCE + _rounding(ours.stops[n][-1]) / largest
        if allowed < difference < KERNELS:
            allowed += min(2 * _between_kernels(samples, rows, schedule, ours, n), KERNELS)
        if not difference <= allowed:
            fault = f"the stock pipeline differs from the sampler of training by {difference:.2g} of the largest value"
            raise _failure(export, f"at {n} steps {fault}, allowed {allowed:.2g}")
        yield Agreement(n, difference)


def _rounded(
    agreements: Sequence[Agreement], schedule: SchedulerExport, trained: Ours, seen: Mapping[str, Tensor]
) -> list[Agreement]:
    """The agreements, with how far the file is from the weights before they were rounded for it."""
    made, told = trained.made(), []
    for agreement in agreements:
        rows = _rows(seen, made, agreement.steps)
        exact = _samples(rows, schedule, made, agreement.steps)
        rounding = float((_ends(rows, schedule) - exact).abs().max() / exact.abs().max())
        told.append(replace(agreement, rounding=rounding))
    return told


def _rows(seen: Mapping[str, Tensor], ours: Ours, n: int) -> list[dict[str, Tensor]]:
    """What the isolated process saw of each seed in n steps."""
    return [{key: seen[f"{n}/{i}/{key}"] for key in stock_process.KEYS} for i in range(len(ours.seeds))]


def _ends(rows: Sequence[Mapping[str, Tensor]], schedule: SchedulerExport) -> Tensor:
    """The samples of the isolated process, in the units of ours."""
    return torch.cat([row["end"] for row in rows]) / unit(schedule.scheduler)


def _rounding(last: Stop) -> float:
    """What float32 leaves of x - sigma eps where x is much larger than data, as at the one step of an EDM student."""
    return 4 * last.sigma * torch.finfo(torch.float32).eps if last.sigma > 1 else 0.0


def _between_kernels(
    samples: Tensor, rows: Sequence[Mapping[str, Tensor]], schedule: SchedulerExport, ours: Ours, n: int
) -> float:
    """How far our own sampler is from itself when it draws the seeds one by one, relative to the largest value."""
    alone = [
        _samples([row], schedule, replace(ours, cond=ours.cond.index(torch.tensor([i])), seeds=[seed]), n)
        for i, (row, seed) in enumerate(zip(rows, ours.seeds, strict=True))
    ]
    return float((torch.cat(alone) - samples).abs().max() / samples.abs().max())


def _ask_isolated(export: Export, schedule: SchedulerExport, ours: Ours, place: Place) -> dict[str, Tensor]:
    calls = [
        {"name": f"{n}/{i}", "seed": seed, "arguments": {**ours.calls[i], "num_inference_steps": n}}
        for n in schedule.steps
        for i, seed in enumerate(ours.seeds)
    ]
    kind = type(schedule.scheduler).__name__
    with TemporaryDirectory() as folder:
        answer = f"{folder}/answer.safetensors"
        replaced = {"kind": kind, "folder": export.scheduler} if export.scheduler else None
        job = {**asdict(export), **asdict(place), "scheduler": replaced, "calls": calls, "answer": answer}
        (Path(folder) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-P", stock_process.__file__, f"{folder}/job.json"]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if run.returncode:
            raise _died(run.returncode, run.stderr, export, place)
        return load_file(answer)


def _died(code: int, said: str, export: Export, place: Place) -> UserError:
    """What the isolated process's end by this code means: only one that had all that it needs tells of the export."""
    if -code in ENDED:
        return NoRoomError(f"the isolated process was ended by {signal.Signals(-code).name}")
    if (short := shortage(said)) is not None:
        return NoRoomError(short)
    last = "".join(said.strip().splitlines()[-1:])
    if not place.whole:
        return NotInPartsError(f"whole, for layer by layer Diffusers cannot call it: {last}")
    return _failure(export, f"a process that knows only Diffusers cannot sample it: {last}")


def _wrong_stops(timesteps: Sequence[float], trained: Sequence[Stop]) -> str | None:
    wanted = [stop.timestep for stop in trained]
    if len(timesteps) == len(wanted) and all(
        abs(t - w) <= TIMESTEP_TOLERANCE for t, w in zip(timesteps, wanted, strict=True)
    ):
        return None
    shown, meant = (", ".join(f"{t:g}" for t in times) for times in (timesteps, wanted))
    return f"the stock pipeline stops at the timesteps {shown}, but {meant} were trained"


def _wrong_noise(rows: Sequence[Mapping[str, Tensor]], schedule: SchedulerExport, ours: Ours, n: int) -> str | None:
    """Pipelines pack their noise, so that what can be held against the seed's are the values in order."""
    stop = ours.stops[n][0]
    factor = _factors(schedule, ours, n)[0]
    for row, seed in zip(rows, ours.seeds, strict=True):
        drawn = torch.randn(row["start"].numel(), generator=torch.Generator().manual_seed(seed))[None]
        t = torch.tensor([stop.time], dtype=torch.float64)
        expected = ours.model().process.prior(factor * drawn, t)[0].sort().values
        start = (row["start"] / unit(schedule.scheduler)).flatten().sort().values
        gap = float((start - expected).abs().max() / expected.abs().max())
        if not gap <= TOLERANCE:
            return f"the stock pipeline starts {gap:.2g} away from the noise of its seed"
    return None


def _samples(rows: Sequence[Mapping[str, Tensor]], schedule: SchedulerExport, ours: Ours, n: int) -> Tensor:
    """Our sampler on the noise that the stock pipeline drew, in full precision as the isolated process's."""
    times = [stop.time for stop in ours.stops[n]]
    noises = _noises(rows, schedule, ours, n)
    with full_precision():
        return sample(ours.at(n), lambda: next(noises), ours.cond, times, sampler=ours.sampler).float().cpu()


def _noises(rows: Sequence[Mapping[str, Tensor]], schedule: SchedulerExport, ours: Ours, n: int) -> Iterator[Tensor]:
    """Noise of the seeds for each stop: the first as it was packed, the others as `scheduler.step` draws them.

    Where a pipeline does not hand its generator on, the isolated process hands one on that is seeded alike.
    """
    t = torch.full((1,), ours.stops[n][0].time, dtype=torch.float64)
    model = ours.model()
    device = next(model.parameters()).device if isinstance(model, torch.nn.Module) else "cpu"
    start = torch.cat([row["start"] for row in rows]) / unit(schedule.scheduler)
    yield (start / model.process.prior(torch.ones(1), t)).to(device)
    streams = [torch.Generator().manual_seed(seed) for seed in ours.seeds]
    for stream, row in zip(streams, rows, strict=True):
        if row["handed"]:
            torch.randn(row["start"].numel(), generator=stream)
    for factor in _factors(schedule, ours, n)[1:]:
        drawn = [torch.randn(row["start"].shape, generator=stream) for stream, row in zip(streams, rows, strict=True)]
        yield factor * torch.cat(drawn).to(device)


def _factors(schedule: SchedulerExport, ours: Ours, n: int) -> list[float]:
    return noise_factors(schedule.scheduler, [stop.timestep for stop in ours.stops[n]])


def _failure(export: Export, fault: str) -> VerificationError:
    return VerificationError(
        f"{export.verified} does not sample as it was trained: {fault}. Do not publish it; report this with the config"
    )
