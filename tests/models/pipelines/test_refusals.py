"""Pipelines that nobody thought of: each is taken for what it is, or refused in words before anything is trained."""

import json

import families_image as image
import huggingface_hub
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub.errors import HTTPError
from tokenizers import Tokenizer

from fastgen.errors import UserError
from fastgen.export.export import export
from fastgen.export.scheduler_export import scheduler_exports
from fastgen.models.denoiser import CallForm
from fastgen.models.pipelines import fuse
from fastgen.models.pipelines.encoding import Asking, identity
from fastgen.models.pipelines.fuse import lora_file
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.source import LoRAFile

SQUARE = {"height": 16, "width": 16}
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def inpainting():
    return StableDiffusionInpaintPipeline(**tiny.stable_diffusion().components | UNCHECKED)


def controlled():
    pipe = tiny.stable_diffusion()
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    return StableDiffusionControlNetPipeline(**pipe.components | UNCHECKED, controlnet=net)


def told_of_classes():
    pipe = tiny.stable_diffusion()
    pipe.register_modules(unet=UNet2DConditionModel.from_config(pipe.unet.config, num_class_embeds=5).eval())
    return pipe


REFUSED = {
    "an image to paint into": (inpainting, {}, "runs with no more than prompt"),
    "an image to follow": (controlled, {}, "runs with no more than prompt"),
    "a class beside the prompt": (told_of_classes, SQUARE, "class_labels should be provided"),
    "a size that does not fit": (tiny.stable_diffusion, {"height": 17, "width": 16}, "divisible by 8 but are 17"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_wants_more_than_a_prompt_is_refused(name):
    builder, size, words = REFUSED[name]
    pipe = builder()
    with pytest.raises(UserError, match=words) as refusal:
        Pipeline(pipe, size=size)
    assert type(pipe).__name__ in str(refusal.value)


def test_a_pipeline_that_swaps_its_scheduler_is_refused_what_it_would_not_sample():
    pipeline = Pipeline(DDIMPipeline(tiny.unet(), DDIMScheduler()))
    with pytest.raises(UserError, match=r"at 1 instead of 999.*Set student\.sampler to ode, which can be"):
        scheduler_exports(pipeline.pipe.scheduler, [1], sampler="renoise", emitted=pipeline.emitted)
    (schedule,) = scheduler_exports(pipeline.pipe.scheduler, [1, 4], sampler="ode", emitted=pipeline.emitted)
    assert schedule.steps == (1, 4)


def test_an_embedded_guidance_stays_at_the_default_that_plain_diffusers_calls_with():
    pipe = image.sdxl()
    pipe.register_modules(unet=UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval())
    pipeline = Pipeline(pipe, size=SQUARE)
    told = pipeline.condition(1, prompts=["a"]).batched["timestep_cond"]
    torch.testing.assert_close(told, pipe.get_guidance_scale_embedding(torch.tensor([5.0 - 1]), embedding_dim=8))
    assert not pipeline.has_null


def key(pipe) -> str:
    return identity(pipe, CallForm(), Asking("prompt", ("a", "b"), SQUARE))


def test_the_cache_key_outlives_a_call_and_knows_how_words_are_split():
    pipe = tiny.stable_diffusion()
    before = key(pipe)
    pipe.encode_prompt("abc", "cpu", 1, False)
    assert key(pipe) == before
    rules = json.loads(pipe.tokenizer.backend_tokenizer.to_str())
    rules["model"]["merges"] = []
    pipe.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(rules))
    assert key(pipe) != before


def test_prompts_are_not_mistaken_for_the_labels_that_a_teacher_wants():
    pipeline = Pipeline(tiny.dit())
    pipeline.encode(["a fox"])
    with pytest.raises(UserError, match="conditioned on labels and the data has none"):
        pipeline.condition(1, prompts=["a fox"])


class Rescaled(StableDiffusionPipeline):
    """Guidance whose standard deviation is given back by default (Lin et al. 2023, arXiv:2305.08891)."""

    @property
    def guidance_rescale(self):
        return 0.7


def test_guidance_that_is_not_the_plain_formula_is_refused():
    with pytest.raises(UserError, match=r"uncond \+ w \(cond - uncond\)'.*without guidance_rescale"):
        Pipeline(Rescaled(**tiny.stable_diffusion().components | UNCHECKED), size=SQUARE)


def test_epsilon_of_pure_noise_is_refused_and_its_velocity_is_not():
    pipe = tiny.stable_diffusion()
    for prediction in ("epsilon", "v_prediction"):
        config = {"rescale_betas_zero_snr": True, "prediction_type": prediction}
        pipe.register_modules(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, **config))
        if prediction == "epsilon":
            with pytest.raises(UserError, match=r"StableDiffusionPipeline predicts epsilon, but .* v_prediction if"):
                Pipeline(pipe, size=SQUARE)
        else:
            assert Pipeline(pipe, size=SQUARE).shape == (4, 8, 8)


def test_a_network_that_couples_its_batch_is_refused():
    pipe = tiny.ddpm()
    pipe.unet.conv_in.register_forward_hook(lambda module, given, output: output + output.mean(0, keepdim=True))
    with pytest.raises(UserError, match=r"self-test failed at 'a prompt alone.*every sample of a batch by itself"):
        Pipeline(pipe)


def test_a_plain_call_loads_an_export_in_one_dtype_whatever_it_was_saved_in(tmp_path):
    pipe = tiny.stable_diffusion().to(dtype=torch.bfloat16)
    export(pipe, Notes(steps=(1,)), tmp_path / "student")
    for loaded in (DiffusionPipeline.from_pretrained(tmp_path / "student"), load(tmp_path / "student", device="cpu")):
        assert {part.dtype for part in loaded.components.values() if isinstance(part, torch.nn.Module)} == {
            torch.float32
        }
        loaded("a", num_inference_steps=1, output_type="latent", **SQUARE)


def test_a_lora_on_the_hub_may_have_a_dot_in_its_name_and_a_missing_file_is_none(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'somebody/style-1.5' is neither here nor would the hub give it"):
        lora_file(LoRAFile(path="somebody/style-1.5", file="x.safetensors"))
    with pytest.raises(UserError, match=r"there is no LoRA 'loras/style.safetensors'"):
        lora_file(LoRAFile(path="loras/style.safetensors"))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    def unreachable(_repository: str) -> list[str]:
        raise HTTPError("connection refused")

    monkeypatch.setattr(fuse, "list_repo_files", unreachable)
    with pytest.raises(UserError, match=r"nor would the hub give it \(connection refused\)"):
        lora_file(LoRAFile(path="somebody/style"))


def test_a_folder_in_half_precision_is_loaded_in_the_precision_that_is_asked_for(tmp_path):
    tiny.stable_diffusion().to(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu").text_encoder.dtype == torch.float32
