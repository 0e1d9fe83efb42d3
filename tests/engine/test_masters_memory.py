"""Bytes a parameter of full fine-tunes, beside the table of the performance page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch
from diffusers import ConsistencyModelPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from fastgen.engine.stage import Stage
from fastgen.models.casting import cast
from fastgen.models.masters import low_of
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed

PAGE = Path(__file__).parents[2] / "docs/performance.md"


def wide() -> Pipeline:
    """A network in bf16 nearly all of whose values are in large tensors."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (128,)}
    net = UNet2DModel(sample_size=8, layers_per_block=1, num_class_embeds=11, add_attention=False, **blocks)
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    found = Pipeline(ConsistencyModelPipeline(unet=net.eval(), scheduler=scheduler))
    cast(found.network, torch.bfloat16)
    return found


def size(tensors: Iterator[Tensor] | list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def held_by(stage: Stage, role: str) -> int:
    """Bytes of a role's network and of its optimizer's states."""
    weights = [*stage.roles[role].parameters()]
    states = stage.optimizers[role].optimizer.state.values() if role in stage.optimizers else ()
    moments = [value for state in states for value in state.values()]
    return size(weights) + size([low for p in weights if (low := low_of(p)) is not None]) + size(moments)


def measured(stage: Stage) -> list[float]:
    """Bytes a parameter of generator, fake score, gradients, average and teacher."""
    most: list[int] = []
    for optimizer in stage.optimizers.values():
        step = optimizer.step

        def watched(optimizer: Any = optimizer, step: Any = step, **told: Any) -> None:
            most.append(size([p.grad for p in optimizer.parameters if p.grad is not None]))
            step(**told)

        optimizer.step = watched  # type: ignore[method-assign]
    stage.cycle()
    count = sum(p.numel() for p in stage.roles.generator.net.parameters())
    average = 0 if stage.config.train.ema_device == "cpu" else size(list(stage.ema.averages.values()))
    roles = [held_by(stage, role) for role in ("generator", "fake_score")]
    return [part / count for part in (*roles, max(most), average, held_by(stage, "real_score"))]


def ledger() -> list[Any]:
    """The table of the page: settings and bytes a parameter of every plan."""
    lines = re.findall(
        r"^\| (?:today|no first|split|8-bit|leanest)[^|]*\| `(.*?)` \| (.+) \|$", PAGE.read_text("utf-8"), re.M
    )
    return [
        pytest.param(settings, [float(cell) for cell in cells.split("|")], id=settings) for settings, cells in lines
    ]


@pytest.mark.parametrize(("settings", "page"), ledger())
def test_the_memory_of_a_full_fine_tune_is_what_the_page_says(settings: str, page: list[float]):
    told: dict[str, Any] = {"precision": "bf16", "ema": 0.9, "optim": {"betas": (0.0, 0.9)}}
    for name, _, value in (setting.partition("=") for setting in settings.split()):
        *group, last = name.split(".")
        (told["optim"] if group else told)[last] = value
    if told["optim"]["betas"] == "[0.9,0.9]":
        told["optim"]["betas"] = (0.9, 0.9)
    found = measured(small_run.stage(wide(), DMD2(ratio=1, gan=GAN(0.0), guidance=Fixed(1.5)), batch=2, **told))
    assert found == pytest.approx(page[:5], abs=0.05)
    assert page[5] == pytest.approx(sum(page[:5]), abs=0.05)
    assert page[6] == pytest.approx(2.567 * sum(page[:5]), abs=0.1)


def test_every_plan_of_the_page_was_found():
    assert len(ledger()) >= 6
