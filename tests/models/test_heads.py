"""Discriminator heads without parameters: the network that they read learns instead."""

import pytest
import small_run
import tiny
import torch
from closed_forms import PLANE, close, streams

from fastgen.engine import stage as loop
from fastgen.models.discriminator import Discriminator, MeanHead
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 6, 3, 4), (2, 6, 2, 3, 4)])
def test_mean_heads_have_a_logit_per_place(shape: tuple[int, ...]):
    features = torch.randn(shape)
    axis = 1 if len(shape) > 3 else len(shape) - 1
    close(MeanHead()(features), features.mean(dim=axis).reshape(2, -1))
    assert not list(MeanHead().parameters())


def test_a_discriminator_without_parameters_trains_through_the_fake_score():
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    batch = toy_batch(PLANE, 16, *streams().values())
    example = batch.x0, batch.full(0.5), batch.cond
    roles.members["discriminator"] = Discriminator(roles.fake_score, ["hidden.1"], example, heads="mean")
    assert not roles.parameters("discriminator")
    with roles.training(("fake_score", "discriminator")):
        term = DMD2(gan=GAN(paired=True, r1=1.0, approximate_r1=1.0)).fake_score(roles, batch)["gan"]
        term.backward()
    assert roles.fake_score.net.enter.weight.grad.any()
    assert all(parameter.grad is None for parameter in roles.parameters("generator"))


def test_a_stage_whose_discriminator_has_no_parameters_trains_the_fake_score_by_it():
    """That role has no optimizer, and its term moves the fake score all the same."""
    moved = []
    for learned in (1e-6, 1.0):
        pipeline = Pipeline(tiny.class_conditional())
        objective = DMD2(ratio=1, gan=GAN(learned=learned), guidance=Fixed(1.5))
        drawn = small_run.stage(pipeline, objective)
        x, t = torch.zeros(2, *pipeline.shape), torch.full((2,), 0.5, dtype=torch.float64)
        example = x, t, pipeline.condition(2, labels=torch.tensor([0, 1]))
        fake_score = drawn.roles.fake_score
        drawn.roles.members["discriminator"] = Discriminator(fake_score, ["mid_block"], example, heads="mean")
        stage = loop.Stage(drawn.config, drawn.roles, drawn.feed, drawn.accelerator)
        figures = stage.cycle()
        assert set(stage.optimizers) == {"generator", "fake_score"}
        assert figures["fake_score/gan"] > 0
        moved.append(small_run.parameters(stage, "fake_score"))
    assert not torch.equal(*moved)


def test_real_images_stand_beside_teacher_pairs():
    """Those of the positions that the pairs' conditions come from."""
    pipeline = Pipeline(tiny.class_conditional())
    stage = small_run.stage(pipeline, DMD(gan=GAN()))
    batch = stage.feed.batch(6, 4, rng=torch.Generator(), shared_rng=torch.Generator())
    seen = batch.x0.flatten(2).mean(dim=2).argmax(dim=1)  # the coloured channel is the label's
    assert seen.tolist() == [int(label) % 3 for label in batch.cond.batched["class_labels"]]
    assert batch.pair.eps.shape == batch.x0.shape
    figures = stage.cycle()
    assert figures["generator/gan"] > 0
    assert figures["fake_score/gan"] > 0
