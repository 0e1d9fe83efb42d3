"""Teachers from class names and from folders."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.pipelines.create import create
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.pipeline import Pipeline

UNET = {
    "class": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
PARTS: dict[str, dict[str, Any]] = {"unet": UNET, "scheduler": {"class": "DDIMScheduler", "beta_schedule": "linear"}}


def weights(seed: int) -> list[Tensor]:
    return list(create("DDIMPipeline", PARTS, seed=seed).unet.parameters())


def test_a_pipeline_is_built_from_class_names_and_their_configs():
    pipe = create("DDIMPipeline", PARTS, seed=0)
    assert type(pipe).__name__ == "DDIMPipeline"
    assert tuple(pipe.unet.config.block_out_channels) == (8, 16)
    assert pipe.scheduler.config.beta_schedule == "linear"
    assert Pipeline(pipe).shape == (3, 8, 8)


def test_the_weights_follow_the_seed():
    first, again, other = weights(0), weights(0), weights(1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize(
    ("pipeline", "changed", "message"),
    [
        ("DDIMPipelin", {}, "no class 'DDIMPipelin'; did you mean DDIMPipeline?"),
        ("DDIMPipeline", {"class": "UNet2DModle"}, "no class 'UNet2DModle'; did you mean UNet2DModel?"),
        ("DDIMPipeline", {"block_out_chanels": [8]}, "'block_out_chanels'; did you mean block_out_channels?"),
        ("DDIMPipeline", {"zzz": 1}, "parts.unet: UNet2DModel has no setting 'zzz'; it takes "),
        ("DDIMPipeline", {"up_block_types": ["UpBlock2D"]}, "UNet2DModel does not take this config ("),
        ("StableDiffusionPipeline", {}, "StableDiffusionPipeline cannot be built from the parts unet, scheduler ("),
    ],
)
def test_mistakes_are_named_with_what_was_meant(pipeline: str, changed: dict[str, Any], message: str):
    parts = {**PARTS, "unet": {**UNET, **changed}}
    with pytest.raises(UserError) as caught:
        create(pipeline, parts, seed=0)
    assert message in str(caught.value)


def test_folders_that_are_no_whole_pipeline_are_named(tmp_path):
    tiny.ddpm().save_pretrained(tmp_path / "pipe")
    with pytest.raises(UserError, match="unet is not a pipeline: it has no model_index"):
        load(tmp_path / "pipe" / "unet", device="cpu")
    with pytest.raises(UserError, match="is a single file, not a pipeline folder"):
        load(tmp_path / "pipe" / "model_index.json", device="cpu")
    with pytest.raises(UserError, match="there is no pipeline folder"):
        load(tmp_path / "elsewhere", device="cpu")


def test_a_folders_notes_say_which_classes_are_real(tmp_path):
    tiny.consistency(num_class_embeds=8).save_pretrained(tmp_path)
    Notes(steps=(1,), num_classes=7, null_label=7).write(tmp_path)
    cpu = torch.device("cpu")
    noted = Pipeline.load(str(tmp_path), device=cpu, num_classes=None, null_label=None)
    assert (noted.classes, noted.null_label) == (range(7), 7)
    told = Pipeline.load(str(tmp_path), device=cpu, num_classes=5, null_label=6)
    assert (told.classes, told.null_label) == (range(5), 6)
