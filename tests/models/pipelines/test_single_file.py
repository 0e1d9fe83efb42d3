"""Teachers that are one file, as people share their fine-tunes."""

from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from teachers import lora_of, picture, refusal, same, taught
from torch import Tensor, nn

from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.source import LoRAFile


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """The tiny pipeline in one file; its text encoder under the keys of Stable Diffusion's first checkpoints."""
    pipe = tiny.stable_diffusion()
    text = {f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v
            for k, v in pipe.text_encoder.state_dict().items()}  # fmt: skip
    ldm = {f"model.diffusion_model.{k}": v for k, v in ldm_unet(pipe.unet).items()}
    vae = {f"first_stage_model.{k}": v for k, v in ldm_vae(pipe.vae).items()}
    save_file({k: v.contiguous() for k, v in (text | ldm | vae).items()}, tmp_path / "all.safetensors")
    return tmp_path / "all.safetensors"


UNET_LDM = {  # of the tiny UNet: down blocks 0 (plain) and 1 (attention), one layer each
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
RESNET_LDM = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_unet(net: nn.Module) -> dict[str, Tensor]:
    told = {}
    for key, value in net.state_dict().items():
        prefix = next(name for name in UNET_LDM if key.startswith(f"{name}."))
        rest = key.removeprefix(f"{prefix}.")
        part = rest.partition(".")[0]
        if "resnets" in prefix:
            rest = rest.replace(part, RESNET_LDM[part], 1)
        told[f"{UNET_LDM[prefix]}.{rest}"] = value
    return told


def ldm_vae(net: nn.Module) -> dict[str, Tensor]:
    told = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for key, value in net.state_dict().items():
        for index in (0, 1):
            key = key.replace(f"down_blocks.{index}.resnets.", f"down.{index}.block.")
            key = key.replace(f"down_blocks.{index}.downsamplers.0", f"down.{index}.downsample")
            key = key.replace(f"up_blocks.{index}.resnets.", f"up.{1 - index}.block.")
            key = key.replace(f"up_blocks.{index}.upsamplers.0", f"up.{1 - index}.upsample")
            key = key.replace(f"mid_block.resnets.{index}", f"mid.block_{index + 1}")
        for ours, theirs in attention.items():
            key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        value = value[..., None, None] if "attn_1" in key and key.endswith("weight") and value.ndim == 2 else value
        told[key] = value
    return told


def test_a_single_file_is_the_pipeline_it_was_made_of(base: Path, single: Path) -> None:
    teacher = taught(single, config=str(base), dtype="fp32")
    assert type(teacher).__name__ == "StableDiffusionPipeline"
    for part in ("unet", "vae", "text_encoder"):
        ours, stock = getattr(teacher, part).state_dict(), getattr(load(base, device="cpu"), part).state_dict()
        assert ours.keys() == stock.keys()
        assert all(torch.equal(value, stock[key]) for key, value in ours.items())
    assert same(picture(teacher), picture(load(base, device="cpu")))


def test_a_single_file_takes_loras_and_a_dtype(base: Path, single: Path) -> None:
    save_file(lora_of(tiny.stable_diffusion().unet, "unet."), single.parent / "lora.safetensors")
    lora = LoRAFile(path=str(single.parent / "lora.safetensors"))
    assert same(picture(taught(single, lora, config=str(base))), picture(taught(base, lora)))
    assert taught(single, config=str(base), dtype="bf16").unet.dtype == torch.bfloat16


def test_a_single_file_without_a_config_needs_the_hub(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(single.parent))
    assert "set teacher.config to a folder" in refusal(single)


def test_a_single_file_that_is_not_whole_is_refused(base: Path, single: Path) -> None:
    ckpt = single.with_suffix(".ckpt")
    ckpt.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "is not a .safetensors file" in refusal(ckpt, config=str(base))
    only_unet = {k: v for k, v in load_file(single).items() if "diffusion_model" in k}
    save_file(only_unet, single)
    assert "It must hold the whole pipeline" in refusal(single, config=str(base))
    single.write_bytes(single.read_bytes()[:100])
    assert "is damaged" in refusal(single, config=str(base))


def test_an_architecture_without_single_files_is_refused(single: Path, tmp_path: Path) -> None:
    tiny.ddpm().save_pretrained(tmp_path / "ddpm")
    assert "DDPMPipeline, which Diffusers cannot load from a single file" in refusal(
        single, config=str(tmp_path / "ddpm")
    )
