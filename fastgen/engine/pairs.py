"""Noise and what the teacher's deterministic sampler makes of it, computed once and kept beside the run."""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ..config.pairs import PairsConfig
from ..data import Loader
from ..disk import require_space
from ..files import atomic_folder
from ..manifest import MANIFEST, verify_manifest, write_manifest
from ..models.contract import Denoiser
from ..models.pipelines.pipeline import Pipeline
from ..sampling.sampler import ode, seeded_noise
from ..seeds import seed_of
from .distributed import broadcast, broadcast_tensors, on_first
from .feed import PairSet

MOST, VALUES = 256, 2**20  # samples that are drawn at once, and values of them: 16 of SDXL at 1024 px


def teacher_pairs(
    folder: Path,
    pipeline: Pipeline,
    teacher: Denoiser,
    spec: PairsConfig,
    *,
    loader: Loader,
    key: str,
    accelerator: Accelerator,
) -> PairSet:
    """The pairs of a run, from `folder` if it holds those of the same `key`, otherwise sampled and put there.

    Raises:
        CheckpointError: those that it holds are not what was written.
    """
    file = folder / "pairs.safetensors"

    def make() -> str:
        require_space(file, 2 * 4 * spec.count * torch.Size(pipeline.shape).numel())  # before what may take hours
        eps, x0 = _sampled(pipeline, teacher, spec, loader, accelerator.device)
        with atomic_folder(folder, replace=True) as temporary:
            save_file({"eps": eps, "x0": x0}, temporary / file.name, metadata={"key": key})
            write_manifest(temporary)
        return _held(file)

    held = broadcast(on_first(lambda: _held(file) if _has(file, key) else make()))
    pairs = broadcast_tensors(lambda: load_file(file))
    return PairSet(pairs["eps"], pairs["x0"], loader, str(held))


def _has(file: Path, key: str) -> bool:
    if not (file.exists() and (file.parent / MANIFEST).exists()):
        return False
    try:
        with safe_open(file, framework="pt") as tensors:
            return (tensors.metadata() or {}).get("key") == key
    except SafetensorError:  # damaged, and quickly made again
        return False


def _held(file: Path) -> str:
    """The hash of the pairs, once they are known to be what was written."""
    remedy = f"delete {file.parent}, and they are made again"
    return verify_manifest(file.parent, remedy=remedy)[file.name].sha256


def _sampled(
    pipeline: Pipeline, teacher: Denoiser, spec: PairsConfig, loader: Loader, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    times = pipeline.teacher_grid(spec.steps).tolist()
    noises, samples = [], []
    most = max(1, min(MOST, VALUES // torch.Size(pipeline.shape).numel()))
    starts = range(0, spec.count, most)
    for start in tqdm(starts, desc="teacher pairs", unit="batch", leave=False):
        count = min(most, spec.count - start)
        items = loader.take(start, count)
        cond = pipeline.condition(count, labels=items.labels, prompts=items.prompts).to(device)
        noise = seeded_noise([seed_of("pair", start + i) for i in range(count)], pipeline.shape, device)()
        noises.append(noise.cpu())
        samples.append(ode(teacher, noise, cond, times, guidance=spec.guidance).cpu())
    return torch.cat(noises), torch.cat(samples)
