r"""What `fastgen plan` says of the step benchmark's settings, beside what was measured.

python -m benchmarks.step --size sdxl --no-plain --out results/step.json
python -m benchmarks.predicted results/step.json [more.json ...] --card h100
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fastgen.planning.cards import CARDS, GIB
from fastgen.planning.forecast import Forecast, Scene

from .networks import SIZES
from .record import written
from .trio import Setting, config_of, lora_of, teacher_on


@dataclass(frozen=True)
class NoImages:
    """A source whose images are the samples, as the benchmark's are."""

    images: None = None

    def items(self, indices: Sequence[int]) -> "NoImages":
        return self


def forecast_of(size: str, setting: Setting) -> Forecast:
    """The costs of a setting of the step benchmark; nothing of it is run."""
    return scene_of(size, setting).forecast()


def scene_of(size: str, setting: Setting) -> Scene:
    """The stage of a setting of the step benchmark, without weights."""
    config: Any = SimpleNamespace(
        seed=0,
        student=SimpleNamespace(steps=(1,), sampler="renoise", guidance=None),
        process="native",
        sharing=setting.sharing,
        memory=setting.memory,
        swaps=setting.memory == "low" and setting.sharing == "lora",
        lora=lora_of(setting),
        data=NoImages(),
    )
    return Scene(config, config_of(setting), teacher_on(SIZES[size], setting, torch.device("meta")))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Counts and prints both, with the ratios of predicted over measured."""
    told = _parser().parse_args(arguments)
    card, rows = CARDS[told.card], {}
    for file in told.files:
        measured = json.loads(file.read_text(encoding="utf-8"))
        forecast = forecast_of(measured["size"], Setting(**measured["setting"]))
        predicted = {
            "peak_gib": (forecast.allocated + card.workspace) / GIB,
            "kept_gib": (forecast.kept + card.workspace) / GIB,
            "needed_gib": card.needs(forecast) / GIB,
            "cycle_seconds": card.cycle(forecast),
            "tflop": forecast.work.flops / 1e12,
            "launches": forecast.work.launches,
        }
        seen = {
            "peak_gib": measured.get("peak_gib"),
            "kept_gib": measured.get("kept_gib"),
            "cycle_seconds": measured.get("seconds", {}).get("cycle"),
            "tflop": measured["flops"] / 1e12 if measured.get("flops") else None,
        }
        ratios = {name: predicted[name] / value for name, value in seen.items() if value}
        rows[file.stem] = {"predicted": predicted, "measured": seen, "ratio": ratios, "failed": measured.get("failed")}
    return written({"benchmark": "predicted", "machine": {"device": card.name}, "rows": rows}, told.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="that benchmarks.step wrote")
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
