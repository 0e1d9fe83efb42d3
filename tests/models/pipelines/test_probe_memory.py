"""What a probe needs at most: no more than the largest call that it makes, and no text encoder beside it."""

import pytest
import tiny
import torch
from families import FAMILIES
from peaks import peak_bytes

from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.probe import STEPS
from fastgen.models.pipelines.watch import record
from fastgen.sampling.sampler import ode, seeded_noise
from fastgen.sampling.stock import generate

CUDA = "cuda"


def test_the_measure_sees_what_lives_at_once():
    def work() -> None:
        one = torch.ones(1000)
        two = one.double()
        del one
        two.clone()

    assert peak_bytes(work) == 2 * 8 * 1000


def test_a_probe_needs_no_more_than_a_call_without_graph_or_one_sample_with_it():
    pipe = tiny.ddpm(size=32)
    pipeline = Pipeline(tiny.ddpm(size=32))
    x, t = torch.randn(STEPS, *pipeline.shape), torch.full((STEPS,), 0.5, dtype=torch.float64)
    model, cond = pipeline.speaking(pipeline.network), pipeline.condition(STEPS)

    def call() -> None:
        with torch.no_grad():
            model(x, t, cond)

    def differentiated() -> None:
        one = x[:1].clone().requires_grad_()
        torch.autograd.grad(model(one, t[:1], pipeline.condition(1)).x0.square().sum(), one)

    largest = max(peak_bytes(call), peak_bytes(differentiated))
    assert peak_bytes(lambda: Pipeline(pipe)) < 1.5 * largest
    assert not any(parameter.requires_grad for parameter in pipe.unet.parameters())


def test_text_encoders_are_off_the_device_whenever_the_denoiser_runs(monkeypatch):
    pipe = FAMILIES["sdxl"].build()
    seen: list[str] = []
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    for encoder in encoders:
        place = encoder.to
        monkeypatch.setattr(
            encoder, "to", lambda to, place=place: seen.append("off" if to == "cpu" else "on") or place(to)
        )
        encoder.register_forward_pre_hook(lambda *_: seen.append("encodes"))
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: seen.append("denoises"))
    Pipeline(pipe)
    before = {"denoises": [], "encodes": []}
    for number, event in enumerate(seen):
        if event in before:
            placed = [one for one in seen[:number] if one in ("on", "off")]
            before[event].append(set(placed[-len(encoders) :]))
    assert before["denoises"].count({"off"}) == len(before["denoises"]) > STEPS
    assert before["encodes"].count({"on"}) == len(before["encodes"]) > STEPS


def test_a_recorded_call_leaves_text_encoders_where_they_were(monkeypatch):
    pipe, placed = FAMILIES["sdxl"].build(), {"text_encoder": [], "text_encoder_2": []}
    for name, places in placed.items():
        to = getattr(pipe, name).to
        monkeypatch.setattr(
            getattr(pipe, name), "to", lambda place, to=to, places=places: places.append(place) or to("cpu")
        )
    record(pipe, {"prompt": ["a", "b"], "height": 8, "width": 8}, steps=2, rows=2)
    for places in placed.values():
        assert places[0] == places[-1] == torch.device("cpu"), "woken, and taken home"
        assert set(places[1:-1]) == {"cpu"}, "at rest while the denoiser runs"


@pytest.mark.gpu
def test_a_guided_teacher_samples_on_a_card_while_its_text_encoders_rest():
    device, prompts, size = torch.device(CUDA), ["a", "b"], {"height": 8, "width": 8}
    pipe = FAMILIES["sdxl"].build().to(device)
    pipeline, drawn_so_far = Pipeline(pipe), torch.cuda.get_rng_state()
    record(pipe, {"prompt": prompts, **size}, steps=2, rows=2)
    assert torch.equal(torch.cuda.get_rng_state(), drawn_so_far)
    assert {part.device.type for part in (pipe.text_encoder, pipe.text_encoder_2)} == {"cpu"}

    model, cond = pipeline.speaking(pipeline.network), pipeline.condition(2, prompts=prompts).to(device)
    noise, grid = seeded_noise([0, 1], pipeline.shape, device), pipeline.teacher_grid(2).tolist()
    latents = ode(model, noise(), cond, grid, guidance=5.0)
    assert latents.device.type == CUDA
    assert pipeline.codec.decode(latents).isfinite().all()
    with pipeline.encoder.awake():
        (drawn,) = generate(pipe, seeds=[0, 1], prompts=prompts, steps=2, arguments={"guidance_scale": 5.0, **size})
    assert drawn.images.isfinite().all()
