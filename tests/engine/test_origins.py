"""Roles start from the weights that their stage names: the teacher's, or what one of the stages before left."""

import pytest
import tiny
import torch

from fastgen.config.lora import LoRAConfig
from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.engine.roles import build_roles
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.roles import taken
from fastgen.models.walk import Plan
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import NO_GAN
from fastgen.process import even_grid

CARRY = {"generator": "teacher", "real_score": "half", "fake_score": "fake_score"}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional(size=8))


def built(pipeline: Pipeline, *, sharing: str, weights: dict, carry: dict):
    settings = TrainConfig.model_validate({"images": 100, "batch": 2})
    stage = StageConfig(name="back", objective=DMD2(gan=NO_GAN), train=settings, carry=carry)
    lora = LoRAConfig(rank=3) if sharing == "lora" else None
    plan = Plan([even_grid(1)])
    return build_roles(pipeline, stage, plan=plan, weights=weights, seed=0, sharing=sharing, lora=lora)


@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_every_role_has_the_weights_that_it_is_said_to_start_from(pipeline: Pipeline, sharing: str):
    plain = built(pipeline, sharing=sharing, weights={}, carry={})
    like = taken(plain.network("generator"))
    left = {
        name: {key: torch.randn_like(value) for key, value in like.items()}
        for name in ("generator", "ema", "half", "whole", "fake_score")
    }
    roles = built(pipeline, sharing=sharing, weights=left, carry=CARRY)
    for role, origin in CARRY.items():
        expected = left.get(origin, like)
        found = taken(roles.network(role))
        assert found.keys() == expected.keys(), role
        # B of an adapter is zero at its start, and A of each role its own
        for key in found if origin in left else [key for key in found if "lora_A" not in key]:
            assert torch.equal(found[key], expected[key]), f"{role}: {key}"
    going_on = built(pipeline, sharing=sharing, weights=left, carry={})
    assert all(torch.equal(value, left["ema"][key]) for key, value in taken(going_on.network("generator")).items())


def test_what_was_not_left_is_refused(pipeline: Pipeline):
    with pytest.raises(UserError, match="which the stage before does not leave"):
        built(pipeline, sharing="full", weights={"generator": {}}, carry=CARRY)
