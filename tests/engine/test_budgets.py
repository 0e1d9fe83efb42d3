"""The budget of a resumed run: what may be trained for longer, and what has learned from its end already."""

from pathlib import Path

import pytest

from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.engine.budgets import Begun, Budget
from fastgen.errors import CheckpointError
from fastgen.objectives import DMD2

WAS = Budget(1000, None)


def stage(images: int, *, minutes: float | None = None, **optim: object) -> StageConfig:
    train = {"images": images, "minutes": minutes, "batch": 10, "roles": {"fake_score": optim}}
    return StageConfig(name="small", objective=DMD2(), train=TrainConfig.model_validate(train))


def begun(*, at: int = 1, images: int = 500, seconds: float = 600.0, updates: int = 50) -> Begun:
    optimizers = {role: {"updates": updates} for role in ("generator", "fake_score")}
    position = {"cycle": 1, "images": images, "drawn": images, "seconds": seconds}
    return Begun(Path("run/checkpoints/00000500"), {"stage": at, "position": position, "optimizers": optimizers})


@pytest.mark.parametrize("now", [stage(2000), stage(500), stage(1000, minutes=20)])
def test_a_stage_of_constant_rates_may_end_later_or_earlier_but_not_before_now(now):
    budget = Budget(now.train.images, now.train.minutes)
    assert begun().new_budget(1, now, WAS) == f"stage 'small' ends after {budget}, which was 1,000 images"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (stage(499), r"500 of which are trained, and now it would after 499 images: give at least 500"),
        (stage(1000, minutes=9), "10 minutes of which are over"),
        (stage(2000, schedule="cosine"), r"whose fake_score has learned .*cosine\).*: resume with train.images=1000"),
        (stage(2000, schedule="linear", warmup=49), r"linear\)"),
    ],
)
def test_an_end_that_came_before_or_that_rates_fell_towards_is_refused_with_its_remedy(now, reason):
    with pytest.raises(CheckpointError, match=f"stage 'small' ends after 1,000 images, .*{reason}.*out="):
        begun().new_budget(1, now, WAS)


def test_rates_that_only_warmed_up_have_not_fallen_yet():
    assert "ends after 2,000 images" in begun().new_budget(1, stage(2000, schedule="cosine", warmup=50), WAS)


def test_a_stage_to_come_may_have_any_budget_and_one_that_is_over_no_other():
    assert "ends after 5 images" in begun(at=0).new_budget(1, stage(5, schedule="cosine"), WAS)
    with pytest.raises(CheckpointError, match="which is over, and now it would after 2,000 images: leave its budget"):
        begun(at=2).new_budget(1, stage(2000), WAS)
