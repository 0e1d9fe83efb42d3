"""Weights that are NaN or infinite are named when they are loaded, wherever a run reads them from."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.pipelines.components import network_of
from fastgen.models.pipelines.finite import check_finite
from fastgen.models.pipelines.fuse import fuse
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.student_network import NetworkSource


def broken(file: Path, value: float, place: int = 0) -> str:
    """Puts a value into a tensor of a file, whose name is returned."""
    tensors = load_file(file)
    name = sorted(tensors)[place]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, {"format": "pt"})
    return name


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    for said in words:
        assert said in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_kind_of_number_is_looked_at_to_its_last_value(value: float, dtype: torch.dtype):
    tensors = {"first": torch.ones(3, 5), "empty": torch.ones(0), "numbers": torch.ones(2, dtype=torch.long)}
    tensors["last"] = torch.full((7, 9), torch.finfo(dtype).max, dtype=dtype)
    check_finite(tensors.items(), "the file")
    check_finite([], "no file")
    tensors["last"][-1, -1] = value
    refused(
        lambda: check_finite(tensors.items(), "the file"), "the file has NaN or infinity among its weights, in last:"
    )


def test_no_more_than_a_few_tensors_are_named():
    tensors = {f"w{number}": torch.tensor([float("nan")]) for number in range(5)}
    refused(lambda: check_finite(tensors.items(), "it"), "in w0, w1, w2 and 2 more: copy or download it again")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_teachers_part_is_named(part: str, tmp_path: Path):
    tiny.stable_diffusion().save_pretrained(tmp_path)
    load(tmp_path, device="cpu")
    (file,) = (tmp_path / part).glob("*.safetensors")
    name = broken(file, float("nan"), place=5)
    refused(lambda: load(tmp_path, device="cpu"), f"{tmp_path / part} has NaN or infinity among its weights, in {name}")
    parts = {part: getattr(tiny.stable_diffusion(), part)}
    load(tmp_path, device="cpu", parts=parts)  # what is not read is not looked at


def test_weights_that_are_too_large_for_their_dtype_are_told_apart(tmp_path: Path):
    tiny.class_conditional().save_pretrained(tmp_path)
    name = broken(tmp_path / "unet/diffusion_pytorch_model.safetensors", 1e5)
    for dtype in (torch.float32, torch.bfloat16):
        load(tmp_path, device="cpu", dtype=dtype)
    refused(lambda: load(tmp_path, device="cpu", dtype=torch.float16), name, "bf16 or fp32", "too large for fp16")


def test_a_students_network_is_refused_by_its_file(tmp_path: Path):
    network_of(tiny.class_conditional()).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    name = broken(file, float("inf"))
    source = NetworkSource(tmp_path)
    refused(lambda: source.built(network_of(tiny.class_conditional()), seed=0), f"network.path: {file} has", name)


def test_a_lora_is_refused_by_its_file(tmp_path: Path):
    factors: dict[str, Tensor] = {"unet.conv_in.lora_A.weight": torch.zeros(2, 4, 3, 3)}
    factors["unet.conv_in.lora_B.weight"] = torch.full((8, 2, 1, 1), float("nan"))
    save_file(factors, file := tmp_path / "lora.safetensors")
    pipe = tiny.stable_diffusion()
    with pytest.raises(
        UserError, match=re.escape(f"{file} has NaN or infinity among its weights, in unet.conv_in.lora_B")
    ):
        fuse(pipe, [(file, 1.0)])
