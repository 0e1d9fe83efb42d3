"""Teachers with LoRAs, for the tests that load them."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.pipelines.source import LoRAFile, TeacherSource
from fastgen.models.pipelines.teacher import load_teacher


def lora_of(net: nn.Module, prefix: str, *, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA on the queries and values of a network, in peft's keys."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
            tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator)
            tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator)
    assert tensors
    return tensors


def picture(pipe: DiffusionPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a b",
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images


def same(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def taught(folder: Path, *loras: LoRAFile, **kwargs: str) -> DiffusionPipeline:
    return load_teacher(TeacherSource(path=str(folder), loras=loras, **kwargs), device="cpu")


def refusal(folder: Path, *loras: LoRAFile, **kwargs: str) -> str:
    with pytest.raises(UserError) as caught:
        taught(folder, *loras, **kwargs)
    return str(caught.value)
