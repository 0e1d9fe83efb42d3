"""Stock pipelines seen through the probe: what it finds, what it refuses, and what it leaves as it was."""

from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DDPMPipeline,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from rounding import assert_alike
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.calls import guided, look
from fastgen.models.conditioning import Conditioning
from fastgen.models.pipelines.arguments import parameters
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.probe import emitted


def flux() -> DiffusionPipeline:
    pipe = tiny.flux()
    pipe.default_sample_size = 8  # 16 px
    return pipe


STOCK = {
    "ddpm": tiny.ddpm,
    "class_conditional": tiny.class_conditional,
    "consistency": tiny.consistency,
    "consistency of classes": lambda: tiny.consistency(num_class_embeds=10),
    "dit": tiny.dit,
    "stable_diffusion": tiny.stable_diffusion,
    "flux": flux,
}
every_pipeline = pytest.mark.parametrize("build", STOCK.values(), ids=STOCK)


def watch(pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch, **call: Any) -> list[SimpleNamespace]:
    """What a stock call tells its network and its scheduler at each step."""
    steps: list[SimpleNamespace] = []
    network = pipe.components.get("unet") or pipe.components["transformer"]
    step = pipe.scheduler.step

    @wraps(step)
    def watched_step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        steps.append(SimpleNamespace(told=told[-1], output=output.clone(), timestep=timestep, sample=sample.clone()))
        return step(output, timestep, sample, *args, **kwargs)

    told: list[dict[str, Any]] = []
    hook = network.register_forward_pre_hook(lambda _net, _args, kwargs: told.append(kwargs), with_kwargs=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", watched_step)
        pipe(**call, output_type="latent" if "vae" in pipe.components else "pt")
    hook.remove()
    return steps


def agree(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


# The probe


@every_pipeline
def test_the_denoiser_says_what_the_stock_network_said_at_every_time_of_a_mixed_batch(build, monkeypatch):
    pipe = build()
    pipeline = Pipeline(pipe)
    rows = {"batch_size": 2} if "batch_size" in parameters(pipe) else {}
    seen = watch(pipe, monkeypatch, **pipeline.example, **rows, **pipeline.unguided, num_inference_steps=4)
    assert len(seen) == 4
    x_t = torch.cat([step.sample for step in seen])
    assert x_t.shape[1:] == pipeline.shape
    scheduler_times = torch.tensor([float(step.timestep) for step in seen for _ in range(2)], dtype=torch.float64)
    cond = pipeline.condition(8, labels=torch.tensor([0, 1] * 4), prompts=["a", "b"] * 4)
    x_t.requires_grad_()
    said = pipeline.denoiser()(x_t, pipeline.reading.time(scheduler_times), cond).output(pipeline.reading.row)
    agree(said.detach(), torch.cat([step.output for step in seen]))
    said.square().sum().backward()
    assert (x_t.grad.flatten(1).abs().sum(1) > 0).all()


def probed_state(pipe: DiffusionPipeline) -> tuple[object, ...]:
    parts = [name for part in ("unet", "transformer", "scheduler") for name in vars(pipe.components.get(part) or pipe)]
    weights = [p.clone() for m in pipe.components.values() if isinstance(m, torch.nn.Module) for p in m.parameters()]
    return id(pipe.scheduler), dict(pipe.scheduler.config), parts.count("forward"), parts.count("step"), weights


def test_probing_a_stochastic_pipeline_draws_from_its_own_generator():
    pipe = tiny.stable_diffusion()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    before = torch.get_rng_state()
    emitted(pipe, {"prompt": ["a", "b"]}, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@every_pipeline
def test_a_probed_pipeline_is_left_as_it_was(build):
    pipe = build()
    pipe.set_progress_bar_config(desc="mine")
    before = probed_state(pipe)
    Pipeline(pipe)
    assert probed_state(pipe)[:4] == before[:4]
    assert all(map(torch.equal, probed_state(pipe)[4], before[4]))
    assert pipe.progress_bar(total=1).desc.startswith("mine")


class Loop(DDPMPipeline):
    """A pipeline whose way of calling its network is open."""

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=10, output_type="pil"):
        x = torch.randn(batch_size, 3, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.said(x, t), t, x, generator=generator).prev_sample

    def net(self, x, t):
        return self.unet(x, t).sample


def loop(said) -> DiffusionPipeline:
    stock = tiny.ddpm()
    kind = type("MyPipeline", (Loop,), {"said": said})
    return kind(unet=stock.unet, scheduler=stock.scheduler)


def test_names_signs_and_maps_of_the_time_are_found():
    plain, odd = (Pipeline(loop(said)) for said in (Loop.net, lambda pipe, x, t: -pipe.net(x, 1 - t / 1000)))
    assert (plain.form.slope, plain.form.offset, plain.form.sign) == (1, 0, 1)
    assert (odd.form.slope, odd.form.offset, odd.form.sign) == (pytest.approx(-1e-3), pytest.approx(1), -1)


DOCTORED = {
    "a squared time": (lambda pipe, x, t: pipe.net(x, t**2), "timestep is affine", r"off by [1-9]"),
    "a scaled input": (
        lambda pipe, x, t: pipe.net(x / 2, t),
        "given the scheduler's sample",
        "sample differs by [0-9.]+",
    ),
    "an unknown input": (
        lambda pipe, x, t: pipe.net(x[:1], t),
        "given the scheduler's sample",
        "no argument has its shape",
    ),
    "a scaled output": (lambda pipe, x, t: 2 * pipe.net(x, t), "network's output up to sign", r"off by [0-9.]+"),
    "no call": (lambda _pipe, x, _t: x, "the denoiser is called", "not in 4 of 4"),
}


@pytest.mark.parametrize("fault", DOCTORED)
def test_a_pipeline_that_treats_its_network_differently_is_refused(fault: str):
    said, check, measured = DOCTORED[fault]
    pipe = loop(said)
    before = probed_state(pipe)
    with pytest.raises(UserError, match=f"(?s)MyPipeline cannot be used.*{check}.*{measured}"):
        Pipeline(pipe)
    assert probed_state(pipe)[:4] == before[:4]


def test_a_pipeline_of_one_step_whatever_is_asked_is_refused():
    class Hasty(Loop):
        said = Loop.net

        def __call__(self, num_inference_steps=3, **call):
            super().__call__(num_inference_steps=1, **call)

    with pytest.raises(UserError, match=r"Hasty cannot be used.*several times': 1 steps were seen of 4"):
        Pipeline(Hasty(**tiny.ddpm().components))


NETWORKS = {
    "blind to its sample": (lambda net, x, t: net(torch.ones_like(x), t), "a gradient reaches the sample", "zero"),
    "without a gradient": (lambda net, x, t: net(x.detach(), t), "a gradient reaches the sample", "zero"),
    "coupling its batch": (
        lambda net, x, t: net(x + x.mean(0), t),
        "a prompt alone is told",
        "[0-9.]+, allowed",
    ),
    "of one time": (
        lambda net, x, t: net(x, t.flatten()[0]),
        "a batch of different times and prompts",
        "[0-9.]+, allowed",
    ),
    "that forgets": (lambda net, x, t: net(x + torch.randn_like(x), t), "replay of the recorded", "[0-9.]+, allowed"),
}


@pytest.mark.parametrize("fault", NETWORKS)
def test_a_network_that_objectives_cannot_use_is_refused(fault: str):
    forward, check, measured = NETWORKS[fault]
    pipe = tiny.ddpm()
    stock = pipe.unet.__class__

    class Doctored(stock):
        def forward(self, sample, timestep, class_labels=None, return_dict=True):
            return forward(super().forward, sample, timestep)

    pipe.unet.__class__ = Doctored
    with pytest.raises(UserError, match=f"(?s)DDPMPipeline cannot be used.*{check}.*{measured}"):
        Pipeline(pipe)


def test_a_pipeline_without_a_denoiser_names_its_parts():
    class Priors(DiffusionPipeline):
        def __init__(self, prior, scheduler):
            super().__init__()
            self.register_modules(prior=prior, scheduler=scheduler)

        def __call__(self, batch_size=1): ...

    stock = tiny.ddpm()
    with pytest.raises(UserError, match=r"Priors has neither a `unet` nor a `transformer`.*prior, scheduler"):
        Pipeline(Priors(stock.unet, stock.scheduler))


def test_a_scheduler_of_no_known_family_is_refused():
    with pytest.raises(UserError, match="scheduler of DDPMPipeline cannot be read: IPNDMScheduler"):
        Pipeline(DDPMPipeline(unet=tiny.unet(), scheduler=IPNDMScheduler()))


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_another_scheduler_of_the_same_teacher_is_the_same_process(kind):
    plain, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    other.scheduler = kind.from_config(other.scheduler.config)
    a, b = Pipeline(plain), Pipeline(other)
    assert type(other.scheduler) is kind
    x_t, t = torch.randn(3, *a.shape), torch.tensor([0.2, 0.55, 1.0], dtype=torch.float64)
    assert_alike(*(p.denoiser()(x_t, t, p.condition(3, prompts=["a", "b", "c"])).x0 for p in (a, b)))


# Conditioning


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
