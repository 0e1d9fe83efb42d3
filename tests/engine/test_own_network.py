"""The roles of a student whose network has an architecture of its own: who has which, and what is averaged."""

import pytest
import tiny
import torch
from torch import nn

from fastgen.config.schema import LoRAConfig, StageConfig, TrainConfig
from fastgen.engine.ema import EMA
from fastgen.engine.roles import build_roles
from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.calls import look
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.student_network import NetworkSource
from fastgen.models.roles import Roles, taken
from fastgen.models.walk import Plan
from fastgen.objectives import OBJECTIVES
from fastgen.process import even_grid


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A teacher of a generator that is narrow."""
    pipeline = Pipeline(tiny.class_conditional())
    narrow = NetworkSource(settings={"block_out_channels": [4, 8], "norm_num_groups": 2})
    return pipeline.starting_from(narrow.built(pipeline.network, seed=0))


def roles_of(pipeline: Pipeline, name: str, *, sharing="full", weights=None, carry=None, **train) -> Roles:
    settings = TrainConfig.model_validate({"images": 10_000, "batch": 2, **train})
    stage = StageConfig(name="small", objective=OBJECTIVES[name](), train=settings, carry=carry or {})
    plan, lora = Plan([even_grid(2)]), LoRAConfig(rank=3)
    return build_roles(pipeline, stage, plan=plan, weights=weights or {}, seed=0, sharing=sharing, lora=lora)


def is_like(network: nn.Module, other: nn.Module, *, equal: bool = True) -> bool:
    ours, theirs = network.state_dict(), other.state_dict()
    alike = {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    return alike and (not equal or all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours))


@pytest.mark.parametrize("name", ["dmd2", "scm", "cd", "sid"])
@pytest.mark.parametrize("train", [{}, {"precision": "bf16", "masters": "bf16"}], ids=["fp32", "masters"])
def test_the_generator_and_its_target_are_like_the_student_and_both_scores_like_the_teacher(pipeline, name, train):
    roles = roles_of(pipeline, name, **train)
    for role in ("generator", "target", "fake_score", "real_score"):
        if role in roles:
            expected = pipeline.start if role in ("generator", "target") else pipeline.network
            assert is_like(roles.network(role).net, expected, equal=not train), role
    average = EMA(roles.generator, decay=0.9).averages
    assert {name: value.shape for name, value in average.items() if name.startswith("net.")} == {
        f"net.{name}": value.shape for name, value in pipeline.start.named_parameters()
    }
    x, cond = torch.zeros(2, *pipeline.shape), pipeline.condition(2, labels=torch.tensor([0, 1]))
    told = {name: torch.zeros(2) for name in roles.generator.scalars}
    assert look(roles.generator, x, torch.full((2,), 0.5, dtype=torch.float64), cond, told).x0.shape == x.shape


def test_a_discriminator_reads_layers_of_the_network_that_it_lies_on(pipeline: Pipeline):
    plain = Pipeline(pipeline.pipe)
    assert roles_of(pipeline, "dmd2").discriminator.layers == roles_of(plain, "dmd2").discriminator.layers


def test_roles_that_go_on_from_the_generator_have_its_architecture(pipeline: Pipeline):
    left = {"generator": {name: torch.randn_like(value) for name, value in pipeline.start.state_dict().items()}}
    roles = roles_of(pipeline, "vsd", weights=left, carry={"real_score": "generator"})
    for role in ("generator", "real_score"):
        found = taken(roles.network(role))
        assert found.keys() == left["generator"].keys()
        assert all(torch.equal(value, left["generator"][name]) for name, value in found.items())
    assert is_like(roles.network("fake_score").net, pipeline.network)
    assert "real_score" in roles.own, "a checkpoint has to hold it"


def test_scores_that_share_the_teachers_network_leave_the_generator_its_own(pipeline: Pipeline):
    roles = roles_of(pipeline, "vsd", sharing="scores")
    assert is_like(roles.network("generator").net, pipeline.start)
    assert isinstance(roles.network("fake_score"), AdaptedDenoiser)


def test_what_the_generator_starts_as_is_left_as_it_is(pipeline: Pipeline):
    before = {name: value.clone() for name, value in pipeline.start.state_dict().items()}
    roles = roles_of(pipeline, "vsd")
    with torch.no_grad():
        for parameter in roles.parameters("generator"):
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.start.state_dict().items())
