"""Runs of which the quality is measured: their stages and what their log says."""

import json
from pathlib import Path

WEIGHTS = "student/unet/diffusion_pytorch_model.safetensors"
TRAIN = {"images": 8, "batch": 2, "ema": 0.5, "optim": {"lr": 1e-2}}
DMD2 = {"name": "dmd2", "objective": {"name": "dmd2", "gan": 0, "ratio": 1}, "train": TRAIN}
KD = {"name": "kd", "objective": {"name": "kd"}, "train": TRAIN}


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
