"""A LoRA of a style by plain denoising, as people train theirs, and its merging into a pipeline."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from fastgen.data.parquet import ParquetImages

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
NOTES = "fastgen.json"
DROPPED = 0.1  # share of the captions, so that guidance keeps its unconditional mode


def finetuned(base: Path, data: ParquetImages, out: Path, *, steps: int, device: torch.device, **how: Any) -> None:
    """Trains a LoRA of a Stable Diffusion on captioned images and saves it as Diffusers does.

    Args:
        base: folder of the pipeline, a teacher or a distilled one.
        data: of the style.
        out: folder of the LoRA.
        steps: updates.
        how: batch, rate, rank and seed.
    """
    torch.manual_seed(how["seed"])
    pipe: Any = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32).to(device)
    process, unet = DDPMScheduler.from_config(pipe.scheduler.config), pipe.unet
    latents, texts = _latents(pipe, data), _texts(pipe, [*(data.prompts or ()), ""])
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=how["rank"], lora_alpha=how["rank"], target_modules=list(LAYERS)))
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how["rate"], weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(latents), (how["batch"],))
        said = torch.where(torch.rand(len(rows)) < DROPPED, len(texts) - 1, rows)
        loss = _loss(process, unet, latents[rows].to(device), texts[said].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    pipe.save_lora_weights(out, unet_lora_layers=get_peft_model_state_dict(unet))
    print(f"{out}: {steps} updates, last loss {loss.item():.4f}")


def _loss(process: DDPMScheduler, unet: torch.nn.Module, x0: Tensor, text: Tensor) -> Tensor:
    noise, times = torch.randn_like(x0), torch.randint(len(process.alphas_cumprod), (len(x0),), device=x0.device)
    noised = process.add_noise(x0, noise, times)
    kind = process.config.prediction_type
    targets = {"epsilon": lambda: noise, "v_prediction": lambda: process.get_velocity(x0, noise, times)}
    with torch.autocast(x0.device.type, torch.bfloat16):
        output = unet(noised, times, encoder_hidden_states=text).sample
    return F.mse_loss(output.float(), targets[kind]())


@torch.no_grad()
def _latents(pipe: Any, data: ParquetImages, at_once: int = 256) -> Tensor:
    found: list[Tensor] = []
    for start in range(0, len(data), at_once):
        images = data.items(range(start, min(start + at_once, len(data)))).images.to(pipe.device)
        found.append(pipe.vae.encode(images).latent_dist.mean.cpu() * pipe.vae.config.scaling_factor)
    return torch.cat(found)


@torch.no_grad()
def _texts(pipe: Any, captions: Sequence[str], at_once: int = 512) -> Tensor:
    pieces = [captions[start : start + at_once] for start in range(0, len(captions), at_once)]
    return torch.cat([pipe.encode_prompt(list(piece), pipe.device, 1, False)[0].cpu() for piece in pieces])


def fused(base: Path, lora: Path, out: Path, *, scale: float | Mapping[str, float] = 1.0) -> None:
    """A copy of a pipeline with a LoRA in its weights; a student stays one, by its notes.

    Args:
        base: folder of the pipeline.
        lora: folder of the LoRA, trained on it or on a sibling.
        out: folder of the copy.
        scale: of the whole LoRA, or of its blocks "down", "mid" and "up", 1 where not given.
    """
    pipe: Any = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipe.load_lora_weights(lora, adapter_name="style")
    pipe.set_adapters("style", {"unet": dict(scale)} if isinstance(scale, Mapping) else scale)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(out)
    if (base / NOTES).is_file():
        shutil.copy(base / NOTES, out / NOTES)
