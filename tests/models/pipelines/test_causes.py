"""A pipeline or network of others may raise anything while it is tried out: each refusal names the true cause."""

import families_image as image
import pytest
import tiny
import torch
from diffusers import (
    DDPMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)

from fastgen.errors import UserError
from fastgen.models.pipelines import probe
from fastgen.models.pipelines.arguments import size_arguments
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.precision import full_precision

SQUARE = {"height": 16, "width": 16}
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
ERRORS = [
    ZeroDivisionError("division by zero"),
    NotImplementedError("without tiling"),
    AssertionError(),
    KeyError("sigma_max"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    torch.OutOfMemoryError("tried to allocate 80 GiB"),
]


def refusal(pipe, **size: int) -> str:
    with pytest.raises(UserError) as caught:
        Pipeline(pipe, size=size)
    return str(caught.value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_network_raises_is_a_refusal_in_words(error, monkeypatch):
    pipe = tiny.stable_diffusion()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pipe.unet.conv_in, "forward", fail)
    told = refusal(pipe, **SQUARE)
    assert "StableDiffusionPipeline" in told
    assert (str(error) or "AssertionError") in told
    assert ("self-test failed at" in told) != isinstance(error, torch.OutOfMemoryError)


def test_a_network_that_fails_only_where_it_is_told_of_mixed_samples_is_refused(monkeypatch):
    pipe = tiny.stable_diffusion()
    convolved = pipe.unet.conv_in.forward
    monkeypatch.setattr(pipe.unet.conv_in, "forward", lambda x: convolved(x) if len(x) < 3 else x[9])
    told = refusal(pipe, **SQUARE)
    assert "the self-test failed at 'its network answers as its call says': IndexError: index 9" in told


class Unwrapped(StableDiffusionPipeline):
    """Cleans prompts by a package that is not here, and does not ask whether it is."""

    def encode_prompt(self, *args, **kwargs):
        return ftfy.fix_text("")  # noqa: F821


def test_a_package_that_a_pipeline_misses_is_the_remedy(monkeypatch):
    monkeypatch.setattr("fastgen.models.pipelines.refusal.find_spec", lambda name: None)
    told = refusal(Unwrapped(**tiny.stable_diffusion().components | UNCHECKED), **SQUARE)
    assert "NameError: name 'ftfy' is not defined" in told
    assert told.endswith("To mend it, install what it needs: pip install ftfy")


def xl_inpainting():
    return StableDiffusionXLInpaintPipeline(**image.sdxl().components)


def inpainting():
    return StableDiffusionInpaintPipeline(**tiny.stable_diffusion().components | UNCHECKED)


@pytest.mark.parametrize("build", [inpainting, xl_inpainting])
def test_an_image_that_a_call_wants_is_said_to_be_missing(build):
    told = refusal(build(), **SQUARE)
    assert "'its call runs with no more than prompt" in told or "'its call runs with no more than height" in told
    assert "it runs with image and mask_image besides" in told
    assert "number of pipeline steps" not in told


def latent_consistency():
    pipe = tiny.stable_diffusion()
    pipe.register_modules(
        unet=UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval(),
        scheduler=LCMScheduler.from_config(pipe.scheduler.config),
    )
    return LatentConsistencyModelPipeline(**pipe.components, requires_safety_checker=False)


class OwnVariance(StableDiffusionPipeline):
    """A call that looks into settings of the scheduler it was written for."""

    def prepare_latents(self, *args, **kwargs):
        if self.scheduler.config.variance_type == "learned":
            raise ValueError
        return super().prepare_latents(*args, **kwargs)


def own_variance():
    parts = tiny.stable_diffusion().components
    return OwnVariance(**parts | UNCHECKED | {"scheduler": DDPMScheduler.from_config(parts["scheduler"].config)})


INSISTS = {
    "LCMScheduler": (latent_consistency, "original_inference_steps"),
    "DDPMScheduler": (own_variance, "variance"),
}


@pytest.mark.parametrize("scheduler", INSISTS)
def test_a_scheduler_that_a_call_insists_on_is_the_cause_and_not_its_arguments(scheduler):
    build, words = INSISTS[scheduler]
    told = refusal(build(), **SQUARE)
    assert f"the plain scheduler of its process, DDIMScheduler': it runs under its own {scheduler} only" in told
    assert words in told
    assert "no more than" not in told


@pytest.mark.parametrize("frames", ["num_frames", "frames", "video_length"])
def test_the_number_of_frames_is_asked_for_by_the_name_that_the_call_has(frames):
    call = f"lambda self, prompt, {frames}=1, height=None: None"
    kind = type("Video", (StableDiffusionPipeline,), {"__call__": eval(call)})
    pipe = kind(**tiny.stable_diffusion().components | UNCHECKED)
    assert size_arguments(pipe, height=16, width=None, frames=5) == {"height": 16, frames: 5}


def test_a_pipeline_of_images_takes_no_frames():
    with pytest.raises(UserError, match="StableDiffusionPipeline takes no num_frames"):
        size_arguments(tiny.stable_diffusion(), height=None, width=None, frames=5)


PARTS = [(backend, part) for backend in ("cuda", "mkldnn") for part in ("matmul", "conv", "rnn")]


def precisions() -> dict[tuple[str, str], str]:
    return {pair: torch._C._get_fp32_precision_getter(*pair) for pair in PARTS}


def older() -> tuple[object, ...]:
    """The older switches, "unreadable" where they disagree with the newer ones."""
    said = []
    backends = torch.backends
    for read in (
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            said.append(read())
        except RuntimeError:
            said.append("unreadable")
    return tuple(said)


@pytest.fixture(params=["as it comes", "older", "high", "medium", "newer", "both"])
def users(request):
    """A process that allows itself less than float32, by PyTorch's older switches, its newer ones, or all at once."""
    backends, before = torch.backends, precisions()
    if request.param == "older":
        backends.cuda.matmul.allow_tf32 = True
    if request.param in ("high", "medium", "both"):
        torch.set_float32_matmul_precision(request.param.replace("both", "high"))
    if request.param in ("newer", "both"):
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "tf32"
        backends.cudnn.rnn.fp32_precision = "ieee"
    yield request.param
    torch.set_float32_matmul_precision("highest")
    for pair, value in before.items():
        torch._C._set_fp32_precision_setter(*pair, value)


def test_the_probe_measures_in_full_float32_and_leaves_the_users_precision_as_it_was(users, monkeypatch):
    before, inside, record = (precisions(), older()), [], probe.record
    monkeypatch.setattr(probe, "record", lambda *a, **k: inside.append(precisions()) or record(*a, **k))
    Pipeline(tiny.ddpm())
    assert inside == [dict.fromkeys(PARTS, "ieee")]
    assert (precisions(), older()) == before


def test_the_older_switches_can_be_read_within_where_they_could_be_before(users):
    before = older()
    with full_precision():
        within = older()
    for full, said, was in zip((False, False, "highest"), within, before, strict=True):
        assert said == full or was == "unreadable"
