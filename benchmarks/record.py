"""What every benchmark writes: figures beside the machine, the card, the commit and the versions that they are of."""

import json
import platform
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch

ROOT = Path(__file__).parent.parent


def about(device: torch.device, *, seed: int = 0) -> dict[str, Any]:
    """Where figures are from."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": card or platform.processor() or platform.machine(),
        "card": card,
        "commit": commit_here(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "seed": seed,
    }


def repeated(seconds: list[float]) -> dict[str, Any]:
    """A duration from its repeats."""
    return {"seconds": median(seconds), "repeats": seconds}


def written(found: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Prints figures and, where asked to, writes them."""
    text = json.dumps(found, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return found


def commit_here() -> str | None:
    """None where the tree is no checkout."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or None
