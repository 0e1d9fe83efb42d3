"""Each family's tiny pipeline is a stock pipeline: it runs, listens to its prompt and survives a save."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, Family, denoiser
from rounding import assert_alike
from torch import Tensor

ONE, OTHER = ("a cat", "blue"), ("two dogs", "green ")


def sample(pipe: DiffusionPipeline, family: Family, prompts: tuple[str, str] = ONE) -> Tensor:
    """Two steps of the pipeline's own call for two prompts or labels."""
    torch.manual_seed(0)
    known = inspect.signature(pipe.__call__).parameters
    labels = [len(prompt) for prompt in prompts]
    words: dict[str, Any] = {"prompt": list(prompts), "class_labels": labels, "batch_size": 2}
    call: dict[str, Any] = {name: value for name, value in words.items() if name in known}
    kind = "latent" if "vae" in pipe.components else "pt"
    noise = torch.Generator().manual_seed(0)
    return torch.as_tensor(
        pipe(**call, **family.size, num_inference_steps=2, output_type=kind, generator=noise, return_dict=False)[0]
    )


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def built(request: pytest.FixtureRequest) -> tuple[Family, DiffusionPipeline, Tensor]:
    """A family, its pipeline, and the sample of `ONE`."""
    family: Family = request.param
    pipe = family.build()
    return family, pipe, sample(pipe, family)


def test_a_stock_call_gives_two_finite_samples(built):
    _, _, images = built
    assert len(images) == 2
    assert images.isfinite().all()
    assert images.std() > 0.05


def test_other_prompts_give_other_samples(built):
    family, pipe, images = built
    if family.name == "ddpm":
        pytest.skip("unconditional")
    other = sample(pipe, family, OTHER)
    assert ((other - images).flatten(1).abs().amax(1) > 1e-4 * images.abs().max()).all()


def test_the_same_weights_are_drawn_every_time(built):
    family, pipe, _ = built
    torch.manual_seed(7)
    again = family.build()
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            torch.testing.assert_close(again.components[name].state_dict(), part.state_dict(), rtol=0, atol=0)


def test_no_parameter_of_the_denoiser_sleeps_at_zero(built):
    _, pipe, _ = built
    assert not [name for name, p in denoiser(pipe).named_parameters() if not p.any()]


def test_a_saved_pipeline_gives_the_same_sample(built, tmp_path: Path):
    family, pipe, images = built
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert_alike(sample(again, family), images, within=1e-4)
