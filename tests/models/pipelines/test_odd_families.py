"""Stock pipelines whose calls differ from the usual: each is read right, or refused for the reason that it has."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families_odd import ODD
from stock_loop import agree, asked, stock, times

from fastgen.errors import UserError
from fastgen.export.scheduler_export import scheduler_exports
from fastgen.models.calls import guided, look
from fastgen.models.layout import Layout
from fastgen.models.pipelines.arguments import classifier_free, guided_call
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.probe import opening

READ = ["animate_diff", *(pytest.param(name, marks=pytest.mark.slow) for name in ("animate_diff_xl", "sana_video"))]
REFUSED = {
    "anyflow": r"the denoiser takes one time for each sample': its timestep is of \[2, 2\]",
    "bria_fibo": r"of what all samples share, txt_ids depend on the prompts beside",
    "cosmos": r"under the plain scheduler of its process, .* only, as that is set \(.*sigma_max",
    "deep_floyd": r"DDIMScheduler': it runs under its own DDPMScheduler only, as that is set \(.*variance_type",
}


def without_ftfy(monkeypatch, module: str) -> None:
    """The package is not among ours; a pipeline that asks for it is given something in its place."""
    cleaned = SimpleNamespace(fix_text=lambda words: words)
    monkeypatch.setattr(f"diffusers.pipelines.{module}.ftfy", cleaned, raising=False)


@pytest.mark.parametrize("name", READ)
def test_an_odd_call_is_replayed_for_other_prompts_and_times_in_one_batch(name: str):
    family = ODD[name]
    pipeline = Pipeline(family.build(), size=family.size)
    for settings in (classifier_free(pipeline.pipe, 1.0), guided_call(pipeline.pipe, 2.5, negative=None, rows=3)):
        seen = stock(pipeline, 4, **settings)[:3]
        x = torch.stack([step.sample[row] for row, step in enumerate(seen)]).float()
        cond, t = pipeline.condition(3, **asked(pipeline, [0, 1, 2])), times(pipeline, seen)
        w = 1.0 if len(seen[0].calls) == 1 and len(seen[0].calls[0].output) == 3 else 2.5
        said = guided(look, pipeline.denoiser(), x, t, cond, w=w).output(pipeline.reading.row)
        agree(said, torch.stack([step.model_output[row] for row, step in enumerate(seen)]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_for_its_true_reason(name: str):
    family = ODD[name]
    with pytest.raises(UserError, match=REFUSED[name]) as refusal:
        Pipeline(family.build(), size=family.size)
    assert type(family.build()).__name__ in str(refusal.value)


def test_a_schedule_that_divides_by_half_its_steps_is_rehearsed_with_more():
    family = ODD["mochi"]
    pipe = family.build()
    assert opening(pipe, {"prompt": ["a", "b"], **family.size}, rows=2).sample.shape[1:] == (12, 2, 2, 2)


@pytest.mark.parametrize("sampler", ["renoise", "ode"])
def test_times_that_no_sampler_serves_are_not_sent_to_the_other_one(sampler):
    with pytest.raises(UserError, match="Neither sampler can be served at any of 1, 2, 3, 4, 8 steps") as refusal:
        scheduler_exports(FlowMatchEulerDiscreteScheduler(), [4], sampler=sampler, emitted=lambda _, n: [999.0] * n)
    assert "student.sampler" not in str(refusal.value)


@pytest.mark.slow
def test_a_scheduler_of_another_family_is_refused_by_name(monkeypatch):
    without_ftfy(monkeypatch, "helios.pipeline_helios")
    family = ODD["helios"]
    with pytest.raises(UserError, match=r"HeliosPipeline cannot be used .* HeliosScheduler"):
        Pipeline(family.build(), size=family.size)


FRAMES = torch.arange(24.0).reshape(6, 4)  # two samples of three frames


def test_rows_of_several_frames_stay_with_their_samples():
    layout = Layout.learnt({"text": FRAMES}, {"text": torch.cat([FRAMES, FRAMES[:3]])})
    cond = layout.conditioning({"text": FRAMES}, 2)
    assert cond.batched["text"].shape == (2, 3, 4)
    second = layout.arguments(cond.index(torch.tensor([1])))
    assert torch.equal(second["text"], FRAMES[3:])
    still = layout.conditioning({"text": FRAMES[:2]}, 2)  # of pictures, there is one frame for each
    assert still.batched["text"].shape == (2, 1, 4)


def test_rows_of_several_frames_on_another_axis_below_a_mapping():
    told = {"added": {"text": FRAMES.T}}
    layout = Layout.learnt(told, {"added": {"text": torch.cat([FRAMES, FRAMES[:3]]).T}})
    turned = layout.arguments(layout.conditioning(told, 2).index(torch.tensor([1, 0])))
    assert torch.equal(turned["added"]["text"], torch.cat([FRAMES[3:], FRAMES[:3]]).T)


def test_lists_of_each_layers_rows_are_opened_and_closed():
    two = [FRAMES[:2], FRAMES[2:4, :2], torch.ones(3)]
    layout = Layout.learnt({"layers": two}, {"layers": [*(torch.cat([x, x[:1]]) for x in two[:2]), two[2]]})
    told = layout.arguments(layout.conditioning({"layers": two}, 2).index(torch.tensor([1])))
    assert isinstance(told["layers"], list)
    for ours, whole in zip(told["layers"], [two[0][1:], two[1][1:], two[2]], strict=True):
        assert torch.equal(ours, whole)


ENTANGLED = {
    "frames of all samples in turn": (FRAMES[[0, 3, 1, 4, 2, 5]], FRAMES[[0, 3, 0, 1, 4, 1, 2, 5, 2]]),
    "one row more than samples": (FRAMES[:3], FRAMES[:4]),
    "all tokens in one row": (torch.ones(1, 5), torch.ones(1, 6)),
    "a count": (2, 3),
    "a mean over the samples": (torch.ones(4), torch.full((4,), 1.5)),
    "a list of frames": ([FRAMES[0]] * 4, [FRAMES[0]] * 6),
}


@pytest.mark.parametrize("case", ENTANGLED)
def test_an_argument_that_depends_on_the_samples_and_has_no_rows_is_never_shared(case):
    two, three = ENTANGLED[case]
    with pytest.raises(ValueError, match=r"odd.* (for three|than for two)"):
        Layout.learnt({"odd": two}, {"odd": three})
