"""Proof that a stranger's sampling of an exported folder is the sampling that was trained."""

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..errors import UserError
from ..models.pipeline import Pipeline
from ..process import even_grid
from ..sampling.sampler import ode, renoise, seeded_noise
from .scheduler import Sampler

TOLERANCE = 1e-5
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Agreement:
    """Largest difference between the stock pipeline's samples and ours, relative to the largest value.

    Compared as the last scheduler step leaves them: decoded images are clamped, which hides differences.
    """

    steps: int
    difference: float


def verify(folder: Path, steps: tuple[int, ...], *, sampler: Sampler, device: torch.device) -> list[Agreement]:
    """Loads the folder with plain Diffusers and compares, for each step count, with fastgen's own sampler.

    Raises:
        UserError: they differ by more than 1e-5 of the largest value.
    """
    agreements = []
    for count in steps:
        stock = DiffusionPipeline.from_pretrained(folder, use_safetensors=True).to(device)
        stock.set_progress_bar_config(disable=True)
        theirs = _stock_samples(stock, count)
        ours = _our_samples(stock, count, sampler, device)
        difference = float((theirs - ours).abs().max() / ours.abs().max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"{folder} does not sample as it was trained: at {count} steps the stock pipeline differs from the "
                f"sampler of training by {difference:.2g} of the largest value, allowed {TOLERANCE:g}. Do not publish "
                "it; report this with the config"
            )
        agreements.append(Agreement(count, difference))
    return agreements


def _stock_samples(stock: DiffusionPipeline, steps: int) -> Tensor:
    pipeline = Pipeline(stock)
    call = {name: (values * 2)[: len(SEEDS)] for name, values in pipeline.example.items()}
    if not call or "class_labels" in call:
        call["batch_size"] = len(SEEDS)
    call |= pipeline.unguided
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call["output_type"] = "latent" if "vae" in stock.components else "pt"
    step, left = stock.scheduler.step, []

    @wraps(step)  # pipelines look into its signature for `generator`
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        stepped = step(*args, **kwargs)
        left.append(stepped[0])
        return stepped

    stock.scheduler.step = watched_step
    stock(**call, generator=generators, num_inference_steps=steps)
    del stock.scheduler.step
    return left[-1].float()


def _our_samples(stock: DiffusionPipeline, steps: int, sampler: Sampler, device: torch.device) -> Tensor:
    pipeline = Pipeline(stock)
    model, times = pipeline.denoiser(), even_grid(steps).tolist()
    labels, prompts = torch.tensor([0, 1, 0]), ["a", "b", "a"]
    cond = pipeline.condition(len(SEEDS), labels=labels, prompts=prompts).to(device)
    noise = seeded_noise(SEEDS, pipeline.shape, device)
    return renoise(model, noise, cond, times) if sampler == "renoise" else ode(model, noise(), cond, times)
