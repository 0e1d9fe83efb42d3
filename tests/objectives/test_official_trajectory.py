"""The consistency family against its authors' code, by numbers of both sides on the same toy networks."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import close
from official import Row, at, check, table, theirs
from official_toy import (
    ELEMENTS,
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
from fastgen.objectives.parts import adversarial, curricula
from fastgen.objectives.parts.curricula import Ramp, Ratio, Root, ramp
from fastgen.objectives.parts.flow_map import Interval, cells, origin
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import lcm, progressive, tdd
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven, in_window
from fastgen.process import EDM, ROWS, Flow, Uniform, even_grid
from fastgen.process.prediction import consistency_row, edm_row
from fastgen.proofs.page import inserted

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
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
    return STABLE_DIFFUSION.clock(objective.judged(roles, waves(NOISE)).ends.s)


def tdd_slope(file: File) -> Tensor:
    t, r, s = (step(file[name]) for name in ("t", "r", "s"))
    objective = TargetDriven(teacher_guidance=Guidance(4.5, 4.5), dropout=0.0, gan=GAN(0.0, kind="hinge"))
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
    return with_given(MeanFlow, "_times", (real(file["t"]), real(file["s"])), ours)


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


BY_WEIGHTS = "gradient by the weights"
ONE = (1.0, "1")
NORM = (1 / math.sqrt(ELEMENTS), "1 / sqrt(d)")
TWICE = (float(ELEMENTS), "d")
PHASES, STAGES, NORMS = (2, 5), (0, 2, 4, 7), ("element", "element_warming", "element_wide", "sample", "sample_warming")
SCM = {
    "element": "norm per element, c 0.1",
    "element_warming": "norm per element, 40 % warmed up",
    "element_wide": "norm per element, c 0.2",
    "sample": "norm of the sample, c 0.1",
    "sample_warming": "norm of the sample, 40 % warmed up",
}
ROWS_OF_THE_PAGE = [
    Row("cd", "gradient", f"{BY_WEIGHTS}, Heun, 18 points of the ramp", *ONE, cd_slope),
    Row("ct", "gradient", f"{BY_WEIGHTS}, 12 points", *ONE, ct_slope),
    *(
        Row(
            "ct_on_ect",
            f"stage_{n}.gradient",
            f"{BY_WEIGHTS}, stage {n}, c 0",
            *NORM,
            partial(ect_slope, stage=n),
            1e-8,
        )
        for n in STAGES
    ),
    *(
        Row("ct_on_ect", f"stage_{n}.r", f"r of each t, stage {n}", *ONE, partial(ect_neighbours, stage=n))
        for n in STAGES
    ),
    Row("lcm", "gradient", f"{BY_WEIGHTS}, less c_skip of 7e-6 at step 19", *ONE, lcm_slope, 1e-4),
    Row("lcm", "steps", "the solver's steps", *ONE, solver_steps),
    *(Row("scm", f"{n}.gradient", f"{BY_WEIGHTS}, {SCM[n]}", *TWICE, partial(scm_slope, case=n)) for n in NORMS),
    Row(
        "sana_sprint",
        "warming.gradient",
        f"tangent's {BY_WEIGHTS}, 40 % warmed up",
        *ONE,
        partial(sprint_slope, images=40, term="tangent"),
    ),
    Row(
        "sana_sprint",
        "warm.gradient",
        f"tangent's {BY_WEIGHTS}",
        *ONE,
        partial(sprint_slope, images=100, term="tangent"),
    ),
    Row(
        "sana_sprint",
        "adversarial_gradient",
        f"adversary's {BY_WEIGHTS}",
        *ONE,
        partial(sprint_slope, images=0, term="gan"),
    ),
    Row("sana_sprint", "discriminator", "discriminator's loss, times shared", *ONE, sprint_taught),
    *(
        Row("pcm", f"phases_{n}.{key}", f"{what}, {n} phases", *ONE, partial(phased, phases=n, ours=ours))
        for n in PHASES
        for key, what, ours in (
            ("gradient", BY_WEIGHTS, pcm_term("consistency")),
            ("adversarial_gradient", f"adversary's {BY_WEIGHTS}", pcm_term("gan")),
            ("discriminator", "discriminator's loss", pcm_taught),
            ("end", "the ends of jumps", pcm_ends),
        )
    ),
    Row("tdd", "gradient", BY_WEIGHTS, *ONE, tdd_slope),
    Row(
        "meanflow", "cifar10.gradient", f"{BY_WEIGHTS}, p 0.75, c 0.001", *ONE, partial(meanflow_slope, case="cifar10")
    ),
    Row("meanflow", "imagenet.gradient", f"{BY_WEIGHTS}, p 1, c 0.01", *ONE, partial(meanflow_slope, case="imagenet")),
    *(
        Row(
            "shortcut",
            f"jump_{n}.gradient",
            f"{BY_WEIGHTS}, jumps of 1 / {n}",
            *ONE,
            partial(shortcut_slope, jump=f"jump_{n}"),
            1e-4,
        )
        for n in (1, 2, 4, 8, 32)
    ),
    Row(
        "shortcut",
        "shortest.gradient",
        f"{BY_WEIGHTS}, shortest jumps, on data",
        *ONE,
        partial(shortcut_slope, jump="shortest"),
        1e-4,
    ),
    Row("self_shortcut", "gradient", f"{BY_WEIGHTS}, its fast average standing at the generator", *ONE, scfm_slope),
    Row("progressive", "gradient", f"{BY_WEIGHTS}, truncated SNR", *ONE, progressive_slope, 1e-7),
]


@pytest.mark.parametrize("row", ROWS_OF_THE_PAGE, ids=lambda row: row.id)
def test_our_side_is_the_factor_times_the_official_one(row: Row):
    check(row)


def test_the_targets_within_tdds_window():
    file = theirs("tdd")
    targets = step(file["targets"])
    for end, window in file["windows"].items():
        allowed = in_window(targets, step([int(end)]), TargetDriven().window)[0]
        close(targets[allowed], step(window))


def test_the_points_of_consistency_distillation():
    file = theirs("cd")
    grid = ramp(RAMP, torch.cat([even_grid(1), CLEAN]), file["points"] - 1)
    close(RAMP.sigma(grid)[:-1], real(file["sigmas"])[:-1])


def test_the_curriculum_of_consistency_training():
    """The code's decay has one point fewer in its exponent than the paper's, which is taken here."""
    law = Root(images=1000)
    for row in theirs("ct")["curriculum"]:
        images = round(1000 * row["share"])
        assert law.points(images) == row["points"]
        ratio = math.log(law.ema(images)) / math.log(row["decay"])
        assert ratio == pytest.approx((row["points"] - 1) / row["points"])


def test_the_page_has_the_table():
    page, block = PAGE.read_text(), table(ROWS_OF_THE_PAGE)
    assert inserted(page, "official-trajectory", block) == page, (
        "put it there: python tests/objectives/test_official_trajectory.py"
    )


if __name__ == "__main__":
    PAGE.write_text(inserted(PAGE.read_text(), "official-trajectory", table(ROWS_OF_THE_PAGE)))
