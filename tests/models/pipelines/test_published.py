"""Pipelines of published sizes: as large as they are, and called without weights as those of a folder are."""

import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES

from fastgen.models.pipelines.arguments import default_guidance
from fastgen.models.pipelines.components import encoders_of, network_of
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.published import PUBLISHED, published
from fastgen.models.pipelines.weightless import answering, weightless

MILLIONS = {  # of the denoiser, as its model card or paper says
    "sd15": 860,
    "sdxl": 2567,
    "sd3": 2028,
    "flux": 11901,
    "sana": 1604,
    "qwen_image": 20430,
    "z_image": 6155,
    "ltx": 1923,
    "wan": 1419,
}


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_pipeline_is_as_large_as_published_and_has_no_weights(name):
    pipe = PUBLISHED[name].built(torch.bfloat16)
    assert isinstance(pipe, DiffusionPipeline)
    assert parameters(network_of(pipe)) / 1e6 == pytest.approx(MILLIONS[name], abs=1)
    assert sum(map(parameters, encoders_of(pipe))) == sum(PUBLISHED[name].texts.values())
    assert {p.device.type for part in (network_of(pipe), pipe.vae) for p in part.parameters()} == {"meta"}


def test_a_hub_id_is_known_and_another_is_not():
    assert published("Qwen/Qwen-Image") is PUBLISHED["qwen_image"]
    assert published("me/mine") is None


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("stable_diffusion", 7.5), ("sdxl", 5.0), ("qwen_image", 4.0), ("z_image", 6.0), ("flux", 1.0)],
)
def test_the_guidance_of_a_call_that_names_none_is_told_in_one_convention(name, guidance):
    assert default_guidance(FAMILIES[name].build()) == guidance


def test_what_an_autoencoder_normalises_by_is_there_while_it_answers(tmp_path):
    family = FAMILIES["ltx"]
    family.build().save_pretrained(tmp_path)
    pipe = weightless(str(tmp_path), dtype=torch.float32)
    mean = pipe.vae.latents_mean
    with answering(pipe):
        pipeline = Pipeline(pipe, size=family.size, test=False)
        assert pipeline.codec is not None
        assert pipe.vae.latents_mean.device.type == "cpu"
    assert pipe.vae.latents_mean is mean
    assert mean.is_meta
