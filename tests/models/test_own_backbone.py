"""A discriminator with a backbone of its own: it learns with the heads, and nobody else's network does."""

import copy

import pytest
import small_run
import tiny
import torch
from torch import nn
from towers import NOTHING, T, Tower, network

from fastgen.models.own_backbone import OwnDiscriminator
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.objectives import OBJECTIVES
from fastgen.objectives.adversarial.apt import APT
from fastgen.process import Trig


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


@pytest.mark.parametrize("retold", [False, True])
def test_the_layers_up_to_the_last_that_is_read_learn(retold: bool):
    example, backbone = (torch.randn(3, 4), T, NOTHING), network(Tower())
    judge = OwnDiscriminator(RetargetedDenoiser(backbone, Trig()) if retold else backbone, ("layers.1",), example)
    inner = "inner." if retold else ""
    assert judge.unread == {f"trunk.{inner}net.layers.{i}.{name}" for i in (2, 3) for name in ("weight", "bias")}
    nn.init.normal_(judge.heads[0].logit.weight)
    assert not any(p.requires_grad for p in judge.parameters())
    judge.requires_grad_(True)
    judge(*example).square().sum().backward()
    assert {name for name, p in judge.named_parameters() if p.grad is None} == judge.unread


def test_in_a_run_the_copy_learns_and_the_teacher_stays(pipeline: Pipeline):
    teacher = copy.deepcopy(pipeline.network.state_dict())
    stage = small_run.stage(pipeline, APT())
    judge = stage.roles["discriminator"]
    assert isinstance(judge, OwnDiscriminator)
    nn.init.normal_(judge.heads[0].logit.weight, std=0.1)
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    figures = stage.cycle()
    assert {name for name in figures if "grad" not in name and "lr" not in name} >= {"discriminator/r1"}
    moved = {name for name, value in judge.state_dict().items() if not torch.equal(value, before[name])}
    assert judge.unread
    assert moved.isdisjoint(judge.unread)
    read = [name for name, _ in judge.trunk.named_parameters() if f"trunk.{name}" not in judge.unread]
    assert sum(f"trunk.{name}" in moved for name in read) > 0.8 * len(read)
    assert all(torch.equal(value, teacher[name]) for name, value in pipeline.network.state_dict().items())
    assert not judge.unread & stage.snapshot().tensors["optimizer.discriminator"].keys()
    assert "real_score" not in stage.roles


def test_only_an_objective_that_reads_nobody_gets_one_unasked():
    assert not any((APT().needs.real_score, APT().needs.target))
    assert OBJECTIVES["ladd"]().needs.real_score
