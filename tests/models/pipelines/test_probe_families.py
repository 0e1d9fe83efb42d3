"""Every family through the probe: no list of names, the recorded stock loop is the judge."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, probed
from quick import FORMS, some
from stock_loop import PROMPTS, agree, asked, stock, times

from fastgen.errors import UserError
from fastgen.models.calls import guided, look
from fastgen.models.pipelines.arguments import classifier_free, guided_call
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.watch import record

UNGUIDED = {"ddpm", "consistency", "sana_sprint", "flux2"}
REFUSED = {"cogview4", "latte"}
every_family = pytest.mark.parametrize("name", some((name for name in FAMILIES if name not in REFUSED), *FORMS))


@every_family
def test_a_batch_of_different_prompts_and_times_says_what_the_stock_loop_said_of_each(name: str):
    pipeline = probed(name)
    seen = stock(pipeline, 4, **classifier_free(pipeline.pipe, 1.0))
    rows = [i % 3 for i in range(len(seen))]
    x = torch.stack([step.sample[row] for step, row in zip(seen, rows, strict=True)]).float().requires_grad_()
    assert tuple(x.shape[1:]) == pipeline.shape
    cond = pipeline.condition(len(rows), **asked(pipeline, rows))
    said = pipeline.denoiser()(x, times(pipeline, seen), cond).output(pipeline.reading.row)
    agree(said.detach(), torch.stack([step.model_output[row] for step, row in zip(seen, rows, strict=True)]))
    said.square().sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


@every_family
def test_guided_predictions_are_the_stock_loops_own(name: str):
    pipeline = probed(name)
    assert pipeline.has_null == (name not in UNGUIDED)
    if name in UNGUIDED:
        return
    first, second = stock(pipeline, 2, **guided_call(pipeline.pipe, 2.5, negative=None, rows=3))
    x, t = torch.cat([first.sample[:2], second.sample[2:3]]).float(), times(pipeline, [first, first, second])
    cond = pipeline.condition(3, **asked(pipeline, [0, 1, 2]))
    said = guided(look, pipeline.denoiser(), x, t, cond, w=2.5).output(pipeline.reading.row)
    agree(said, torch.cat([first.model_output[:2], second.model_output[2:3]]))


@every_family
def test_the_grid_is_where_the_stock_loop_stops(name: str):
    pipeline = probed(name)
    told = {"none": {}, "label": {"class_labels": [3, 1]}, "prompt": {"prompt": PROMPTS[:2]}}[pipeline.kind]
    seen = record(pipeline.pipe, {**told, **pipeline.size, **classifier_free(pipeline.pipe, 1.0)}, steps=2, rows=2)
    assert torch.equal(pipeline.grid(2), times(pipeline, seen))


FAULTS = {
    "cogview4": r"the scheduler's step from one time to the next'.*0\.0",  # its network is told other times
    "latte": r"a prompt alone is told as it is among others'.*0\.0",  # it is cropped alone, zeroed among others
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_pipeline_that_the_recipe_does_not_fit_is_refused_by_the_check_that_sees_it(name: str):
    with pytest.raises(UserError, match=f"Pipeline cannot be used as a teacher.*{FAULTS[name]}"):
        probed(name)


def test_sdxl_goes_without_a_condition_by_zeros_and_with_a_negative_prompt_by_its_embedding():
    family = FAMILIES["sdxl"]
    zeros = probed("sdxl").condition(1, prompts=["fox"]).unconditional
    assert not zeros.kwargs["encoder_hidden_states"].any()
    ugly = Pipeline(family.build(), size=family.size, negative_prompt="ugly")
    told, asked_for = ugly.condition(1, prompts=["fox"]).unconditional, ugly.condition(1, prompts=["ugly"])
    torch.testing.assert_close(told.kwargs["encoder_hidden_states"], asked_for.kwargs["encoder_hidden_states"])
    pooled = [cond.kwargs["added_cond_kwargs"]["text_embeds"] for cond in (told, asked_for)]
    torch.testing.assert_close(*pooled)


def test_another_size_is_told_to_the_network_and_changes_the_samples():
    small, wide = probed("sdxl"), Pipeline(FAMILIES["sdxl"].build(), size={"height": 16, "width": 32})
    assert (small.shape, wide.shape) == ((4, 8, 8), (4, 8, 16))
    told = [p.condition(1, prompts=["fox"]).kwargs["added_cond_kwargs"]["time_ids"].tolist() for p in (small, wide)]
    assert told == [[[16, 16, 0, 0, 16, 16]], [[16, 32, 0, 0, 16, 32]]]


ROUNDED = ("sdxl", "flux", "chroma", "z_image", "sana_sprint", "wan", "wan_of_two")


@pytest.mark.parametrize("name", some(ROUNDED, "sdxl", "flux", "wan_of_two"))  # by steps, scaled, by whole steps
def test_in_half_precision_whose_loops_round_their_times_the_same_is_found(name: str):
    family = FAMILIES[name]
    half = Pipeline(family.build().to(torch.bfloat16), size=family.size)
    exact = probed(name).form
    assert (half.form.slope, half.form.offset) == pytest.approx((exact.slope, exact.offset), abs=1e-6)
    assert half.form == replace(exact, slope=half.form.slope, offset=half.form.offset)
