"""The proof bed: two-dimensional mixtures whose scores are exact, on every process."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import chain, count

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.denoiser import NetworkDenoiser
from ..models.roles import Roles
from ..models.walk import Sampler, sample, scalars_at, walk
from ..objectives import Batch, Objective, Pair
from ..process import EDM, Flow, Process, Trig, from_scheduler
from .analytic import ExactDenoiser, Mixture
from .toy import imitate, sliced_wasserstein, toy_denoiser, toy_roles_of

PROCESSES: dict[str, Process] = {
    "vp": from_scheduler(DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)).process,
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
SAMPLES, PAIRS = 10_000, 4096


def ring(weights: list[float], *, variance: float, classes: int = 1) -> Mixture:
    """Round Gaussians on the unit circle, their classes in turn."""
    count = len(weights)
    angles = 2 * math.pi * torch.arange(count) / count
    means = torch.stack([angles.cos(), angles.sin()], dim=1)
    covariances = variance * torch.eye(2).expand(count, 2, 2)
    return Mixture(means, covariances, weights=torch.tensor(weights), labels=torch.arange(count) % classes)


DATA: dict[str, Mixture] = {
    "five": ring([0.3, 0.1, 0.2, 0.25, 0.15], variance=0.02, classes=2),
    "eight": ring([0.2, 0.05, 0.15, 0.1, 0.2, 0.05, 0.15, 0.1], variance=0.01),
}

UPDATES = {"five": 400, "eight": 2000}
"""Of the regression to the exact denoiser that every network starts from."""


@dataclass(frozen=True)
class Bed:
    """A process and a distribution by name, so that what was learned of them can be kept.

    Args:
        process: a name of `PROCESSES`.
        data: a name of `DATA`.
        classes: whether samples are asked for by class.
        instead: (class, class that the teacher is asked for in its place), where something is to be forgotten.
    """

    process: str
    data: str = "five"
    classes: bool = False
    instead: tuple[tuple[int, int], ...] = ()

    @property
    def real(self) -> ExactDenoiser:
        return ExactDenoiser(PROCESSES[self.process], DATA[self.data])

    def labels(self, count: int, rng: torch.Generator) -> Tensor:
        """Classes [count] as frequent as in the data; -1, the whole distribution, without classes."""
        data = DATA[self.data]
        drawn = torch.multinomial(data.weights, count, replacement=True, generator=rng)
        return data.labels[drawn] if self.classes else torch.full((count,), -1)

    def kept(self, labels: Tensor) -> Tensor:
        """The classes that the teacher is asked for."""
        others = dict(self.instead)
        return torch.tensor([others.get(label, label) for label in labels.tolist()])

    def cond(self, labels: Tensor) -> Conditioning:
        """The conditioning of labels; without classes, unconditional and without a null twin."""
        return DATA[self.data].cond(labels) if self.classes else DATA[self.data].uncond(len(labels))


def bed_of(objective: Objective, process: str, data: str = "five") -> Bed:
    """The bed with the conditioning that the objective needs."""
    instead = tuple((int(one), int(other)) for one, other in objective.needs.instead)
    asked = objective.needs.null or bool(objective.needs.context) or bool(instead)
    return Bed(process, data, classes=asked, instead=instead)


def sampler_of(objective: Objective) -> Sampler:
    """The sampler that the objective trains for, renoise where it leaves the choice."""
    return objective.needs.sampler or "renoise"


@cache
def learned(process: str, data: str, seed: int) -> NetworkDenoiser:
    """A small network that imitates the exact denoiser; every trained role starts from a copy."""
    torch.manual_seed(seed)
    student = toy_denoiser(PROCESSES[process], DATA[data])
    imitate(student, ExactDenoiser(PROCESSES[process], DATA[data]), updates=UPDATES[data], batch=512, seed=seed)
    return student


def started(objective: Objective, bed: Bed, grid: Tensor, *, seed: int) -> Roles:
    """The objective's roles before any training."""
    network = learned(bed.process, bed.data, seed)
    return toy_roles_of(network, bed.real, [grid], objective=objective, sampler=sampler_of(objective))


@dataclass(frozen=True)
class StoredPairs:
    """Noises, the ends of the exact probability flow that starts there, and their classes, [N, ...] each."""

    labels: Tensor
    eps: Tensor
    x0: Tensor


@cache
def pairs(bed: Bed) -> StoredPairs:
    """Pairs of a bed, kept once they are made."""
    process, real = PROCESSES[bed.process], bed.real
    labels, eps = bed.labels(PAIRS, seeded(0)), noise(1, PAIRS)
    one = torch.ones(PAIRS, dtype=torch.float64)
    return StoredPairs(labels, eps, real.flow_map(process.prior(eps, one), one, 0 * one, bed.cond(labels), steps=60))


def batch_for(
    objective: Objective, bed: Bed, size: int, rng: torch.Generator, shared_rng: torch.Generator, *, images: int = 0
) -> Batch:
    """A batch with exactly what the objective says it needs; the context of a class is the one after it."""
    labels, drawn, real = bed.labels(size, rng), None, None
    if objective.needs.pairs:
        stored, rows = pairs(bed), torch.randint(PAIRS, (size,), generator=rng)
        labels, drawn = stored.labels[rows], Pair(stored.eps[rows], stored.x0[rows])
    if objective.needs.images:
        real = DATA[bed.data].sample(size, rng, labels=labels if bed.classes else None).float()
    changed = bed.cond((labels + 1) % DATA[bed.data].num_classes) if objective.needs.context else None
    kept = bed.cond(bed.kept(labels)) if bed.instead else None
    cond = bed.cond(labels)
    return Batch(cond, (2,), rng, shared_rng, real=real, pairs=drawn, images=images, changed=changed, kept=kept)


def generated(generator: Denoiser, bed: Bed, grid: Tensor, sampler: Sampler) -> list[Tensor]:
    """The clean samples that each step of the student's sampler predicts; the last are what it returns."""
    times, seeds = grid.tolist(), chain([2], count(4))
    scalars = scalars_at(times, generator.scalars, sampler=sampler, guidance=None)
    cond = bed.cond(bed.labels(SAMPLES, seeded(0)))
    stops = walk(generator, lambda: noise(next(seeds), SAMPLES), cond, times, sampler=sampler, scalars=scalars)
    return [stop.belief.x0 for stop in stops if stop.belief is not None]


def integrated(bed: Bed, grid: Tensor) -> Tensor:
    """Samples of the teacher's deterministic sampler on the same grid."""
    cond = bed.cond(bed.kept(bed.labels(SAMPLES, seeded(0))))
    return sample(bed.real, lambda: noise(2, SAMPLES), cond, grid.tolist(), sampler="ode")


def distance(samples: Tensor, bed: Bed) -> float:
    """Sliced Wasserstein distance to as many samples of the data, without what is to be forgotten."""
    count, rng = len(samples), seeded(3)
    labels = bed.kept(bed.labels(count, seeded(0))) if bed.instead else None
    return sliced_wasserstein(samples, DATA[bed.data].sample(count, rng, labels=labels))


def noise(seed: int, count: int) -> Tensor:
    """[count, 2]."""
    return torch.randn(count, 2, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)
