"""The two sides of each number of the consistency family: what our objectives say of the toy networks."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from official import at
from official_toy import (
    FRESH,
    NOISE,
    OTHER,
    STABLE_DIFFUSION,
    edm_scale,
    real,
    slope,
    toys,
    waves,
)
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives.parts import adversarial, curricula, mean_velocity
from fastgen.objectives.parts.curricula import Ramp, Ratio
from fastgen.objectives.parts.flow_map import Interval, cells, origin
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import lcm, progressive, scflow, tdd
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.objectives.trajectory.scflow import SelfCorrectedFlow
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.process import EDM, ROWS, Flow, Uniform, even_grid
from fastgen.process.prediction import consistency_row, edm_row

RAMP, FLOW = EDM(), Flow()
CLEAN = torch.zeros(1, dtype=torch.float64)
File = dict[str, Any]


def with_given(owner: object, name: str, value: object, ours: Callable[[], Tensor]) -> Tensor:
    """What is found where a drawn value is that of the official side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *given: value)
        return ours()


def step(steps: list[int]) -> Tensor:
    """Process times of the trained steps of Stable Diffusion."""
    return (real(steps) + 1) / STABLE_DIFFUSION.steps


# Latent consistency, phases and targets


def lcm_slope(file: File) -> Tensor:
    objective = LatentConsistency(teacher_guidance=Guidance(8.5, 8.5))
    roles = toys(objective, STABLE_DIFFUSION, row=ROWS["eps"])
    cell = step(file["t"]), step(file["r"])
    return with_given(lcm, "drawn_cell", cell, lambda: slope(objective, roles, waves(NOISE), "consistency"))


def self_corrected(file: File, ours: Callable[[SelfCorrectedFlow, Roles], Tensor]) -> Tensor:
    """At the official side's times and neighbours, which lie nearer than 0.1 and are judged where the lower one is."""
    t, r, q = (real(file[name]) for name in ("t", "post", "prev"))
    objective = SelfCorrectedFlow()
    objective = replace(objective, gan=replace(objective.gan, times=at(r)))
    roles = toys(objective, FLOW, row=ROWS["difference"])
    shares = iter([(t - r) / t.clamp(max=objective.reach), (q - t) / (1 - t).clamp(max=objective.reach)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scflow, "drawn_times", lambda *_, **__: t)
        patch.setattr(scflow, "uniform", lambda *_: next(shares))
        return ours(objective, roles)


def self_corrected_term(term: str) -> Callable[[SelfCorrectedFlow, Roles], Tensor]:
    return lambda objective, roles: slope(objective, roles, waves(NOISE, FRESH), term)


def self_corrected_taught(objective: SelfCorrectedFlow, roles: Roles) -> Tensor:
    return objective.discriminator(roles, waves(NOISE, FRESH))["gan"]


def solver_steps(file: File) -> Tensor:
    grid = cells(torch.cat([even_grid(1), CLEAN]), LatentConsistency().grid)
    return STABLE_DIFFUSION.clock(grid[:-1].flip(0))


def phased(file: File, phases: int, ours: Callable[[PhasedConsistency, Roles], Tensor]) -> Tensor:
    there = file[f"phases_{phases}"]
    t, r, s, judged = (step(there[name]) for name in ("t", "r", "end", "adversary"))
    gan = GAN(0.1, learned=1.0, kind="hinge", times=at((judged - s) * phases))
    objective = PhasedConsistency(teacher_guidance=Guidance(5.5, 5.5), gan=gan)
    roles = toys(objective, STABLE_DIFFUSION, row=ROWS["eps"], steps=phases)
    return with_given(adversarial, "drawn_cell", (t, r), lambda: ours(objective, roles))


def pcm_term(term: str) -> Callable[[PhasedConsistency, Roles], Tensor]:
    return lambda objective, roles: slope(objective, roles, waves(NOISE, FRESH), term)


def pcm_taught(objective: PhasedConsistency, roles: Roles) -> Tensor:
    return objective.discriminator(roles, waves(NOISE, OTHER, FRESH))["gan"]


def pcm_ends(objective: PhasedConsistency, roles: Roles) -> Tensor:
    return STABLE_DIFFUSION.clock(objective.compared(roles, waves(NOISE)).ends.s)


def tdd_slope(file: File) -> Tensor:
    t, r, s = (step(file[name]) for name in ("t", "r", "s"))
    objective = TargetDriven(teacher_guidance=Guidance(4.5, 4.5), dropout=0.0, gan=GAN(0.0))
    roles = toys(objective, STABLE_DIFFUSION, row=ROWS["eps"], steps=4)
    ours = partial(slope, objective, roles, waves(NOISE), "consistency")
    return with_given(TargetDriven, "targets", s, lambda: with_given(tdd, "drawn_cell", (t, r), ours))


# Consistency models


def between(file: File, objective: ConsistencyDistillation | ConsistencyTraining) -> Tensor:
    """The gradient where the official side's cells of our own grid are drawn."""
    roles = toys(objective, RAMP, row=consistency_row, teacher=edm_row, scale=edm_scale)
    index = torch.tensor(file["cells"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curricula, "drawn_cell", lambda grid, *_: (grid[index], grid[index + 1].clamp(min=origin(RAMP))))
        return slope(objective, roles, waves(NOISE), "consistency")


def cd_slope(file: File) -> Tensor:
    return between(file, ConsistencyDistillation(curriculum=Ramp(file["points"])))


def ct_slope(file: File) -> Tensor:
    return between(file, ConsistencyTraining(curriculum=Ramp(file["points"]), distance="l2"))


def ect(file: File, stage: int) -> tuple[Ratio, int]:
    every = 3_200_000
    return Ratio(images=every, times=at(RAMP.from_clock(real(file["t"])))), stage * every


def ect_slope(file: File, stage: int) -> Tensor:
    curriculum, images = ect(file, stage)
    objective = ConsistencyTraining(curriculum=curriculum, huber=0.0)
    roles = toys(objective, RAMP, row=edm_row, scale=edm_scale)
    return slope(objective, roles, waves(NOISE, images=images), "consistency")


def ect_neighbours(file: File, stage: int) -> Tensor:
    curriculum, images = ect(file, stage)
    near = curriculum.neighbours(RAMP, torch.cat([even_grid(1), CLEAN]), waves(images=images))
    return RAMP.sigma(near.r)


# Continuous time


def scm_slope(file: File, case: str) -> Tensor:
    there = file[case]
    objective = SimplifiedConsistency(
        times=at(RAMP.from_clock(real(file["sigma"]))),
        sigma_data=0.5,
        warmup=100,
        normaliser=there["c"],
        norm="element" if there["elements"] else "sample",
    )
    roles = toys(objective, RAMP, row=edm_row, scale=edm_scale)
    return slope(objective, roles, waves(NOISE, images=round(100 * there["warmup"])), "tangent")


def flow_times(angles: list[float]) -> Uniform:
    u = real(angles)
    return at(u.sin() / (u.sin() + u.cos()))


def sprint(file: File) -> tuple[SanaSprint, Roles]:
    objective = SanaSprint(
        teacher_guidance=Guidance(file["guidance"], file["guidance"]),
        times=flow_times(file["angles"]),
        called=flow_times(file["called"]),
        first=0.0,
        warmup=100,
        gan=GAN(0.5, learned=0.5, kind="hinge", times=flow_times(file["judged"]), paired="times"),
    )
    return objective, toys(objective, FLOW, row=ROWS["flow"])


def sprint_slope(file: File, images: int, term: str) -> Tensor:
    return slope(*sprint(file), waves(FRESH, OTHER, NOISE, images=images), term)


def sprint_taught(file: File) -> Tensor:
    objective, roles = sprint(file)
    return objective.discriminator(roles, waves(FRESH, OTHER, NOISE))["gan"]


def meanflow_slope(file: File, case: str) -> Tensor:
    there = file[case]
    objective = MeanFlow(velocity="data", power=there["power"], c=there["c"])
    roles = toys(objective, FLOW, row=ROWS["flow"])
    ours = partial(slope, objective, roles, waves(NOISE), "mean_velocity")
    return with_given(mean_velocity, "with_diagonal", (real(file["t"]), real(file["s"])), ours)


# Several steps in one


class Cosine(Flow):
    """log-SNR -2 log tan from 20 to -20: alpha and sigma alone."""

    def logsnr(self, t: Tensor) -> Tensor:
        low, high = (math.atan(math.exp(-0.5 * end)) for end in (20.0, -20.0))
        return -2 * torch.tan((high - low) * t + low).log()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.logsnr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.logsnr(t)).sqrt()


def progressive_slope(file: File) -> Tensor:
    t = (real(file["cells"]) + 1) / file["steps"]
    objective = Progressive()
    roles = toys(objective, Cosine(), row=ROWS["x0"])
    ours = partial(slope, objective, roles, waves(NOISE), "progressive")
    return with_given(progressive, "drawn_step", (t, t - 1 / file["steps"]), ours)


def shortcut_slope(file: File, jump: str) -> Tensor:
    there = file[jump]
    t = real(there["t"]) if jump == "shortest" else torch.full((6,), there["t"]).double()
    s = t - 1 / there["levels"] if jump == "shortest" else torch.full((6,), there["s"]).double()
    objective = Shortcut(bootstrapped=float(jump != "shortest"), velocity="data")
    roles = toys(objective, FLOW, row=ROWS["flow"])
    ours = partial(slope, objective, roles, waves(NOISE), "shortcut")
    return with_given(Shortcut, "_jump", Interval(t, (t + s) / 2, s), ours)


def scfm_slope(file: File) -> Tensor:
    jump = Interval(*(real(file[name]) for name in ("t", "r", "s")))
    objective = SelfShortcut()
    roles = toys(objective, FLOW, row=ROWS["flow"])
    ours = partial(slope, objective, roles, waves(NOISE), "shortcut")
    return with_given(SelfShortcut, "_jump", (torch.tensor(file["taught"]), jump), ours)
