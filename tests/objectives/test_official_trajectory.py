"""The consistency family against its authors' code, by numbers of both sides on the same toy networks."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from closed_forms import close
from official import Row, check, table, theirs
from official_toy import (
    ELEMENTS,
    real,
)
from official_trajectory_sides import (
    CLEAN,
    RAMP,
    cd_slope,
    ct_slope,
    ect_neighbours,
    ect_slope,
    lcm_slope,
    meanflow_slope,
    pcm_ends,
    pcm_taught,
    pcm_term,
    phased,
    progressive_slope,
    scfm_slope,
    scm_slope,
    self_corrected,
    self_corrected_taught,
    self_corrected_term,
    shortcut_slope,
    solver_steps,
    sprint_slope,
    sprint_taught,
    step,
    tdd_slope,
)

from fastgen.objectives.parts.curricula import Root, ramp
from fastgen.objectives.trajectory.tdd import TargetDriven, in_window
from fastgen.process import even_grid
from fastgen.proofs.page import inserted

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
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
    *(
        Row("scflow", f"gradient.{term}", f"{what} {BY_WEIGHTS}", *ONE, partial(self_corrected, ours=ours))
        for term, what, ours in [
            (term, what, self_corrected_term(term))
            for term, what in {
                "consistency": "consistency's",
                "back": "the upper neighbour's",
                "straight": "the correction's",
                "gan": "adversary's",
            }.items()
        ]
    ),
    Row("scflow", "discriminator", "discriminator's loss", *ONE, partial(self_corrected, ours=self_corrected_taught)),
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
