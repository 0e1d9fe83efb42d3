"""Stock pipelines seen through the probe: what it finds, what it refuses, and what it leaves as it was."""

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
from stock_told import agree, watch

from fastgen.errors import UserError
from fastgen.models.pipelines.arguments import classifier_free, parameters
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


@every_pipeline
def test_the_denoiser_says_what_the_stock_network_said_at_every_time_of_a_mixed_batch(build, monkeypatch):
    pipe = build()
    pipeline = Pipeline(pipe)
    rows = {"batch_size": 2} if "batch_size" in parameters(pipe) else {}
    told = {"none": {}, "label": {"class_labels": [0, 1]}, "prompt": {"prompt": ["a", "b"]}}[pipeline.kind]
    seen = watch(pipe, monkeypatch, **told, **rows, **classifier_free(pipe, 1.0), num_inference_steps=4)
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
