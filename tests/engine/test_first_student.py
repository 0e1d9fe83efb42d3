"""At its start a student is its teacher: before a first update it predicts what the teacher does, bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
from small_vision import write_vision
from torch import Tensor

from fastgen.config.discriminator import DiscriminatorConfig
from fastgen.config.lora import LoRAConfig
from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.engine.roles import build_roles
from fastgen.models.calls import look
from fastgen.models.conditioning import Conditioning
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.rewards import Weighted
from fastgen.models.rewards import Scorer
from fastgen.models.walk import Plan, scalars_at
from fastgen.objectives import OBJECTIVES
from fastgen.process import even_grid

ROWS = 2
PLAN = Plan([even_grid(2)])
LORA = LoRAConfig(rank=3, targets=["to_q", "to_v"])  # heads of three channels are baked into another layer


class Teacher(NamedTuple):
    """With its clean samples [2, ...] of some noise at each of the student's stops, by time."""

    pipeline: Pipeline
    cond: Conditioning
    x_t: Tensor
    x0: dict[float, Tensor]


@dataclass(frozen=True)
class Nothing:
    """Every picture is worth nothing."""

    def load(self, device: torch.device) -> Scorer:
        return lambda images, asked: 0 * images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    pipeline = Pipeline(tiny.class_conditional(size=8))
    cond = pipeline.condition(ROWS, labels=torch.arange(ROWS))
    x_t = torch.randn((ROWS, *pipeline.shape), generator=torch.Generator().manual_seed(0))
    model = pipeline.denoiser()
    return Teacher(pipeline, cond, x_t, {t: look(model, x_t, at(t), cond).x0 for t in PLAN.grids[0].tolist()})


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision model that judges decoded samples."""
    return write_vision(tmp_path_factory.mktemp("first") / "vision")


def at(t: float) -> Tensor:
    return torch.full((ROWS,), t, dtype=torch.float64)


@pytest.mark.parametrize("sharing", ["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_before_its_first_update_a_student_is_its_teacher(teacher: Teacher, vision: Path, name: str, sharing: str):
    settings = TrainConfig.model_validate({"images": 10_000, "batch": ROWS})
    objective = OBJECTIVES[name]()
    rewards = Weighted((Nothing(),), (1.0,)) if objective.needs.rewards else None
    judge = DiscriminatorConfig(network=str(vision)) if objective.needs.pixels else DiscriminatorConfig()
    stage = StageConfig(name="small", objective=objective, train=settings, rewards=rewards, discriminator=judge)
    lora = LORA if sharing == "lora" else None
    roles = build_roles(teacher.pipeline, stage, plan=PLAN, weights={}, seed=0, sharing=sharing, lora=lora)
    model = roles.generator
    told = scalars_at(list(teacher.x0), model.scalars, sampler=PLAN.sampler, guidance=1.0)
    for t, x0 in teacher.x0.items():
        scalars = {scalar: torch.full((ROWS,), value) for scalar, value in told[t].items()}
        assert torch.equal(look(model, teacher.x_t, at(t), teacher.cond, scalars).x0, x0), t
