"""The figures of a benchmark's JSON file: numbers by dotted name, which way is better, and how much they scatter."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

APART = ("machine", "setting", "profile")
"""What a benchmark says of itself."""
HIGHER = ("per_second", "times_as_fast")
"""In the name of a figure of which more is better; of all others less is."""
SETTLED = ("parameters", "flops", "benchmark", "size", "model")
"""Neither better nor worse."""


@dataclass(frozen=True)
class Figure:
    """A number and its relative standard error, 0 where it was measured once."""

    value: float
    noise: float = 0.0


@dataclass(frozen=True)
class Result:
    """A benchmark's file.

    Attributes:
        name: of the file, without its ending.
        benchmark: which of the commands it is of.
        machine, setting: where and how it was measured.
        figures: numbers by dotted name.
    """

    name: str
    benchmark: str
    machine: dict[str, Any]
    setting: dict[str, Any]
    figures: dict[str, Figure]

    @classmethod
    def read(cls, file: Path) -> "Result":
        """Of a file that one of the benchmarks wrote.

        Raises:
            ValueError: it is none.
        """
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("machine"), dict):
            raise ValueError(f"{file} is no benchmark's file: it does not say which machine it is of")
        setting = {name: found[name] for name in ("size", "model") if name in found} | found.get("setting", {})
        figures = dict(_figures({name: value for name, value in found.items() if name not in (*APART, *SETTLED)}))
        return cls(file.stem, str(found.get("benchmark", "step")), found["machine"], setting, figures)


def higher_is_better(name: str) -> bool:
    """Whether more of a figure is better."""
    return any(part in name for part in HIGHER)


def noise_of(repeats: list[float]) -> float:
    """The relative standard error of the median of repeats of one measurement."""
    if len(repeats) < 2:
        return 0.0
    return math.sqrt(math.pi / 2) * stdev(repeats) / math.sqrt(len(repeats)) / median(repeats)


def _figures(found: dict[str, Any], path: str = "") -> Iterator[tuple[str, Figure]]:
    noise = noise_of(found["repeats"]) if isinstance(found.get("repeats"), list) else 0.0
    for name, value in found.items():
        where = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _figures(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, Figure(float(value), noise if "second" in where else 0.0)
