"""Parameters of a trained role that stay as they are: to the bit, and through checkpoints."""

from typing import Any

import pytest
import small_run
import tiny
import torch
from torch import Tensor

from fastgen.config.lora import LoRAConfig
from fastgen.engine import roles
from fastgen.engine.stage import Stage
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import KnowledgeDistillation

MOST = {"roles": {"generator": {"frozen": ["conv", r"proj\.weight$"]}}}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "split": {"precision": "bf16", "masters": "split"},
    "eight bits": {"precision": "bf16", "masters": "bf16", "optim": {"name": "adamw8bit"}},
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def generator_of(stage: Stage, group: str = "generator") -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stage.snapshot().tensors[group].items()}


def stays(name: str) -> bool:
    return "conv" in name or name.endswith("proj.weight")


def check_who_moves(pipeline: Pipeline, **settings: Any) -> None:
    """Of the weights, of their average, and among the moments; a resumed run goes on alike."""
    first, second = (small_run.stage(pipeline, KnowledgeDistillation(), **settings, **MOST) for _ in range(2))
    before = generator_of(first)
    first.cycle()
    second.restore(first.snapshot())
    assert first.cycle() == second.cycle()
    for group in ("generator", "ema"):
        after, resumed = generator_of(first, group), generator_of(second, group)
        assert all(torch.equal(after[name], resumed[name]) for name in after)
        moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
        assert {name for name in before if stays(name)}.isdisjoint(moved)
        assert len(moved) > 0.6 * sum(not stays(name) for name in before), "what is not named is trained"
    held = [name for name in first.snapshot().tensors["optimizer.generator"] if stays(name)]
    assert not held


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_to_the_bit(kind: str, pipeline: Pipeline):
    check_who_moves(pipeline, **KINDS[kind])


def test_a_frozen_parameter_has_no_gradient_and_is_said_to_be_trained_by_nobody(pipeline: Pipeline):
    held = small_run.stage(pipeline, KnowledgeDistillation(), **MOST).roles
    with held.training(("generator",)):
        asked = {name for name, p in held.generator.named_parameters() if p.requires_grad}
    assert asked == set(held.trained("generator").places)
    assert not any(stays(name) for name in asked)
    assert not any(p.requires_grad for p in held.generator.parameters())


@pytest.mark.parametrize(
    ("frozen", "lora", "words"),
    [
        (["nowhere"], None, "has 'nowhere', which fits no parameter; there are e.g. conv_in.weight"),
        (["("], None, "is no regular expression"),
        ([""], None, "fits all .* nothing would learn"),
        (["conv"], LoRAConfig(rank=2), "under sharing=lora it trains an adapter"),
    ],
)
def test_what_cannot_be_frozen_is_refused(frozen: list[str], lora: LoRAConfig | None, words: str, pipeline: Pipeline):
    with pytest.raises(UserError, match=words):
        small_run.stage(pipeline, KnowledgeDistillation(), lora=lora, roles={"generator": {"frozen": frozen}})


def test_an_optimizer_that_steps_all_is_noticed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roles, "frozen_in", lambda *_, **__: frozenset())
    with pytest.raises(AssertionError):
        check_who_moves(pipeline)
