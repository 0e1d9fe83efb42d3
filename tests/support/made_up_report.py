"""A report folder as an evaluation leaves it: metrics.json (docs/metrics.md) of made-up figures, and small pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = '<script>alert(1)</script> "quoted" & sons'
SEEDS = range(7, 15)
EXTRACTOR = "domain: ResNetModel f0d68a02e598, bilinear plain 16 px, pooled 8, float32"
FIGURES = {
    "fid": {
        "label": "FID",
        "better": "lower",
        "unit": "",
        "paper": "Heusel et al. 2017",
        "interval": "95 %, jackknife",
    },
    "recall": {"label": "recall", "better": "higher", "unit": "", "paper": "Kynkaanniemi 2019", "interval": ""},
    "nyquist_peak": {"label": "nyquist", "better": "zero", "unit": "dB", "paper": "", "interval": ""},
}


def figure(value: float, half: float | None = None) -> dict[str, Any]:
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "details": {"groups": 10}, "spread": None, "values": []}


def row(role: str, steps: int | None, fid: float | None, peak: float = 0.0) -> dict[str, Any]:
    """A row of 5,000 images; its spectrum falls as 1/f^2 and has `peak` dB more at 16 cycles."""
    drawn = role != "real"
    power = [10 ** (0.1 * peak * (f == 16)) * 0.1 / f**2 for f in range(1, 24)]
    metrics = {} if fid is None else {"fid": figure(fid, 0.1 * fid), "nyquist_peak": figure(peak)}
    return {
        "id": role if steps is None else f"{role}-{steps}",
        "role": role,
        "title": role if steps is None else f"{role}, {steps} steps",
        "source": {
            "path": f"runs/{role}",
            "kind": "pipeline" if drawn else "images",
            "guidance": 3.5 if drawn else None,
            "first_seed": SEEDS[0] if drawn else None,
            "dtype": "float32" if drawn else None,
        },
        "num": 5000,
        "skipped": [],
        "steps": steps,
        "nfe": None if steps is None else 2.0 * steps,
        "metrics": metrics,
        "not_measured": {"recall": "features are not stored in a statistics file"} if drawn else {},
        "costs": {
            "nfe": 2.0 * (steps or 0),
            "seconds_per_image": 0.01 * (steps or 0),
            "images_per_second": 100.0,
            "peak_memory_gib": None,
            "batch_size": 10,
        }
        if drawn
        else None,
        "spectrum": {
            "side": 32,
            "bands": [{"low": 1, "high": 4, "db": -0.2}, {"low": 4, "high": 8, "db": peak}] if drawn else [],
            "radial": [{"cycles": f, "power": p} for f, p in enumerate(power, start=1)],
        },
        "per_class": [
            {"label": label, "name": name, "num": 500, "accuracy": 0.9 - 0.2 * label, "diversity": None}
            for label, name in enumerate(("cat", "dog", "emu"))
        ]
        if drawn
        else None,
        "per_prompt": [
            {"prompt": text, "num": num, "clip_score": 0.01 * (steps or 0) + score}
            for text, num, score in ((HOSTILE, 2, 17.5), ("a red bird in the snow, seen from below", 1, 24.25))
        ]
        if drawn
        else None,
        "latency": [
            {
                "batch_size": batch,
                "seconds_per_image": None if batch > 8 * (steps or 0) else 0.03 * (steps or 0) / batch,
            }
            for batch in (1, 4, 16)
        ]
        if steps is not None
        else [],
    }


def picture(folder: Path, path: str, seed: int, size: int = 32) -> str:
    """A smooth coloured field, noisier the longer its path; returns the path."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.5, 3, (3, 2))
    x, y = np.meshgrid(np.linspace(0, 3, size), np.linspace(0, 3, size))
    field = np.stack([np.sin(a * x + b * y + seed) for a, b in waves], -1) * 90 + 128
    noise = np.random.default_rng(len(path)).normal(0, 40 if "student-1" in path else 4, field.shape)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((field + noise).clip(0, 255).astype("uint8")).save(folder / path)
    return path


def gallery(folder: Path, rows: list[dict], size: int) -> dict[str, Any]:
    shown = [one["id"] for one in rows if one["id"] != "held-out"]
    generated = [name for name in shown if name != "real"]
    asked = {"label": 1, "class_name": "dog", "prompt": HOSTILE}
    near = [{"index": i, "distance": 1.5 + i, "image": f"images/real/neighbour-{i}.png"} for i in range(3)]
    for one in near:
        picture(folder, one["image"], one["index"])
    return {
        "items": [{"seed": seed, **asked} for seed in SEEDS],
        "images": {name: [picture(folder, f"images/{name}/{s}.png", s, size) for s in SEEDS] for name in shown},
        "strip": {
            **asked,
            "seeds": list(SEEDS),
            "images": {name: [picture(folder, f"images/{name}/strip-{s}.png", s) for s in SEEDS] for name in generated},
        },
        "neighbours": {name: [near for _ in SEEDS] for name in generated},
    }


def provenance() -> dict[str, Any]:
    return {
        "reference": {"path": "data/real", "kind": "images", "num": 5000, "skipped": 0},
        "seeds": [7, 5006],
        "prompts": {"path": "prompts.txt", "sha256": "ab" * 32, "count": 3},
        "labels": None,
        "processes": 1,
        "device": "cpu, x86_64",
        "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
        "settings": {"steps": [1, 2, 4], "clip": None},
        "command": f"fastgen eval --prompt '{HOSTILE}'",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
    }


def report(folder: Path, size: int = 32) -> dict[str, Any]:
    """Real and held-out images, the teacher at 50, 1, 2 and 4 steps, the student at 1, 2 and 4."""
    teachers = [row("teacher", steps, fid) for steps, fid in ((50, 2.1), (1, 180.0), (2, 96.0), (4, 41.0))]
    students = [row("student", steps, fid, peak) for steps, fid, peak in ((1, 9.5, 12), (2, 6.2, 5), (4, 3.9, 0))]
    held_out = {**row("real", None, 1.2), "id": "held-out", "title": "held-out"}
    rows = [row("real", None, None), held_out, *teachers, *students]
    return {
        "format": 2,
        "protocol": {
            "name": "domain",
            "extractor": EXTRACTOR,
            "dim": 512,
            "resizes": True,
            "precision": "float32",
            "min_images": 1000,
            "reference_extractor": EXTRACTOR,
            "classes": ["cat", "dog", "emu"],
            "clip": None,
        },
        "figures": FIGURES,
        "rows": rows,
        "gallery": gallery(folder, rows, size),
        "assertions": [{"text": "fid[4] < 5", "holds": True, "measured": [{"row": "student-4", "value": 3.9}]}],
        "provenance": provenance(),
    }
