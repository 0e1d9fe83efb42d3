"""The call that teaches the fake score is judged too: the same losses and gradients from fewer rows."""

from collections.abc import Callable
from typing import Any

import pytest
import small_run
import tiny
import torch

from fastgen.config.lora import LoRAConfig
from fastgen.errors import UserError
from fastgen.models.contract import BELIEF
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.objectives import DMD2, Objective
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import LongShort, Shared
from fastgen.process import Flow

LAYER = "mid_block"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def objective(*, one_pass: bool, **gan: Any) -> DMD2:
    return DMD2(gan=GAN(weight=0.1, learned=0.5, joint=True, one_pass=one_pass, **gan), ratio=1, rollout="one_step")


def rows_called(net: torch.nn.Module, called: list[int]) -> None:
    """Notes the rows of each call of a network's first and of its last layer."""
    net.conv_in.register_forward_pre_hook(lambda _, given: called.append(len(given[0])))
    net.conv_out.register_forward_pre_hook(lambda _, given: called.append(-len(given[0])))


@pytest.mark.parametrize("shared", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("gan", [{}, {"paired": True, "approximate_r1": 1.0}], ids=["plain", "paired"])
def test_one_pass_teaches_what_two_do(shared: bool, gan: dict[str, Any], pipeline: Pipeline):
    """To rounding: another number of rows is another order of sums."""
    records, rows = [], []
    for one_pass in (False, True):
        lora = LoRAConfig(rank=2) if shared else None
        stage = small_run.stage(pipeline, objective(one_pass=one_pass, **gan), lora=lora, gradient_checkpointing=shared)
        records.append(small_run.recorded(stage, 2))
        rows.append([])
        rows_called(stage.roles.network("fake_score").net, rows[-1])
        batch = stage._batches(1)[0]
        with stage.roles.training(("fake_score", "discriminator")):
            terms = stage.config.objective.fake_score(stage.roles, batch)
        assert set(terms) == {"denoise", "gan"} | ({"r1"} if gan else set())
    apart, once = records
    for role in ("fake_score", "discriminator", "generator"):
        largest = max(float(one.abs().max()) for one in apart.gradients[role])
        assert largest > 0
        for one, other in zip(apart.gradients[role], once.gradients[role], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * largest)
    for one, other in zip(apart.figures, once.figures, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    rollout, r1 = [4, -4] if shared else [], [4] if gan else []
    assert rows == [[*rollout, 4, -4, 8, *r1], [*rollout, 4, -4, 4, *r1]]  # below 0: of the last layer


def test_a_tap_of_the_whole_network_is_its_belief(pipeline: Pipeline):
    """Of a network, under a process that it was retold in, and beside what other layers return."""
    plain = pipeline.denoiser()
    for model in (plain, RetargetedDenoiser(plain, Flow())):
        x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([0.3, 0.9], dtype=torch.float64)
        cond = pipeline.condition(2, labels=torch.tensor([1, 2]))
        feature, belief = model.tap(x_t, t, cond, (LAYER, BELIEF))
        wanted = model(x_t, t, cond)
        assert torch.equal(feature, model.tap(x_t, t, cond, (LAYER,))[0])
        assert torch.equal(belief.x0, wanted.x0)
        assert torch.equal(belief.eps, wanted.eps)
        assert belief.process is model.process
        assert torch.equal(belief.t, t)


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: GAN(one_pass=True), "set gan.joint=true"),
        (lambda: DMD2(gan=GAN(joint=True, one_pass=True), step_aware=True), "told called"),
        (lambda: DMD2(gan=GAN(joint=True, one_pass=True), guidance=Shared(1.0, 2.0)), r"dropout 0\.1"),
        (lambda: DMD2(gan=GAN(joint=True, one_pass=True), guidance=LongShort(2.0, 0.0)), "learned scale 2"),
    ],
    ids=["apart", "told", "dropout", "guided"],
)
def test_one_pass_is_refused_where_the_call_is_not_plain(build: Callable[[], Objective | GAN], rule: str):
    with pytest.raises(ValueError, match=rule):
        build()


def test_one_pass_is_refused_where_the_discriminator_reads_another_network(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    stage = small_run.stage(pipeline, objective(one_pass=True))
    judge = stage.roles.discriminator
    monkeypatch.setattr(judge, "_backbone", (stage.roles.real_score,))
    with pytest.raises(UserError, match=r"set discriminator\.backbone=fake_score"):
        stage.config.objective.fake_score(stage.roles, stage._batches(1)[0])
