"""Prompts and classes reach the network as the stock pipeline tells them, with their null twin."""

from typing import Any

import pytest
import tiny
import torch
from stock_told import agree, watch

from fastgen.errors import UserError
from fastgen.models.calls import guided, look
from fastgen.models.conditioning import Conditioning
from fastgen.models.pipelines.pipeline import Pipeline


def same(told: Conditioning, stock: dict[str, Any], rows: slice) -> None:
    for name, value in told.kwargs.items():
        assert torch.equal(value, stock[name][rows]), name
    assert told.kwargs


GUIDED = {
    "stable_diffusion": (tiny.stable_diffusion, {}, {"prompt": ["fox", "a b", "fox"]}, 7.5, (slice(3, 6), slice(3))),
    "dit": (tiny.dit, {"null_label": 1000}, {"class_labels": [7, 3, 7]}, 4.0, (slice(3), slice(3, 6))),
}


@pytest.mark.parametrize("name", GUIDED)
def test_conditioning_is_what_the_stock_pipeline_tells_its_network_with_the_null_twin(name: str, monkeypatch):
    build, settings, asked, scale, (told, nothing) = GUIDED[name]
    pipe = build()
    (step,) = watch(pipe, monkeypatch, **asked, guidance_scale=scale, num_inference_steps=1)
    values = next(iter(asked.values()))
    pipeline = Pipeline(pipe, **settings)
    labels = torch.tensor(values) if "class_labels" in asked else None
    cond = pipeline.condition(3, labels=labels, prompts=values)
    same(cond, step.told, told)
    same(cond.unconditional, step.told, nothing)


def test_class_labels_reach_the_network_in_the_order_asked(monkeypatch):
    pipe = tiny.class_conditional()
    (step,) = watch(pipe, monkeypatch, batch_size=3, class_labels=[4, 9, 4], num_inference_steps=1)
    cond = Pipeline(pipe).condition(3, labels=torch.tensor([4, 9, 4]))
    same(cond, step.told, slice(None))
    assert cond.unconditional.kwargs["class_labels"].tolist() == [tiny.CLASSES] * 3


def test_guided_predictions_are_the_stock_pipelines_own(monkeypatch):
    pipe = tiny.stable_diffusion()
    prompts = ["fox", "a red bird"]
    seen = watch(pipe, monkeypatch, prompt=prompts, guidance_scale=7.5, num_inference_steps=3)
    pipeline = Pipeline(pipe)
    cond, model = pipeline.condition(2, prompts=prompts), pipeline.denoiser()
    for step in seen:
        t = pipeline.reading.time(torch.full((2,), float(step.timestep), dtype=torch.float64))
        agree(guided(look, model, step.sample, t, cond, w=7.5).output(pipeline.reading.row), step.output)


def test_each_prompt_is_encoded_once():
    pipe = tiny.stable_diffusion()
    pipeline = Pipeline(pipe)
    encoded: list[list[int]] = []
    pipe.text_encoder.register_forward_pre_hook(lambda _net, args: encoded.extend(args[0].tolist()))
    first = pipeline.condition(3, prompts=["fox", "cat", "fox"])
    fox = pipe.tokenizer("fox", padding="max_length").input_ids
    assert encoded.count(fox) == 1
    before = len(encoded)
    again = pipeline.condition(2, prompts=["cat", "fox"])
    assert len(encoded) == before
    for name, value in first.index(torch.tensor([1, 2])).kwargs.items():
        assert torch.equal(again.kwargs[name], value)
    pipeline.condition(2, prompts=["dog", "fox"])
    assert len(encoded) > before
    assert encoded.count(fox) == 1


def test_classes_that_the_teacher_does_not_have_are_refused():
    with pytest.raises(UserError, match="class 10, but the teacher knows 0 to 9"):
        Pipeline(tiny.class_conditional()).condition(2, labels=torch.tensor([1, 10]))


@pytest.mark.parametrize(("build", "kind"), [(tiny.class_conditional, "labels"), (tiny.stable_diffusion, "prompts")])
def test_data_without_what_the_teacher_is_conditioned_on_is_refused(build, kind: str):
    with pytest.raises(UserError, match=f"conditioned on {kind} and the data has none.*with {kind}"):
        Pipeline(build()).condition(2)
