"""What a run says of itself: before it starts, what is done with what; at its end, what it left and what is next."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from ..config.schema import Config
from ..engine.pace import sized, spoken
from ..models.pipelines.pipeline import Pipeline
from ..redaction import redacted
from ..sampling.call import steps_in_words
from .plan import cycles_of, memory, parameters

REPORT = "report/metrics.json"


def header(config: Config, pipeline: Pipeline, accelerator: Accelerator) -> dict[str, str]:
    """What is distilled into what, on what, in which precision, with how much memory and work; by its heading."""
    network, start, stages = pipeline.network, pipeline.start, config.stages
    loras = "".join(f" + {lora.path} x {lora.weight:g}" for lora in config.teacher.loras)
    kind, size = type(pipeline.pipe).__name__, f"{parameters(network) / 1e6:,.1f} M parameters"
    steps = " and ".join(map(str, config.student.steps))
    lines = {
        "teacher": redacted(f"{config.teacher.path or 'random weights'}{loras}, {kind}, {size}"),
        "student": f"{config.exported}, {steps} step{'s' if config.student.steps != (1,) else ''}, "
        f"{config.student.sampler}{_size(pipeline)}{_own(network, start)}",
        "sharing": {
            "full": "a network for every role",
            "lora": f"all roles on one frozen network, LoRAs of rank {config.lora.rank}",
            "scores": f"both scores on one frozen network, LoRA of rank {config.lora.rank}",
        }[config.sharing],
        "device": _device(accelerator),
        "precision": ", ".join(dict.fromkeys(stage.train.precision for stage in stages)),
    }
    planned = [sum(part.bytes for part in memory(stage, config, network, start)) for stage in stages]
    lines["memory"] = f"planned {sized(max(planned))} of {sized(_room(accelerator.device))}, and activations besides"
    for number, stage in enumerate(stages, 1):
        cycles, train = cycles_of(stage), stage.train
        until = "" if train.minutes is None else f", at most {train.minutes:g} min"
        lines[f"stage {number}/{len(stages)}"] = (
            f"{stage.name}: {train.images:,} images in {cycles:,} cycles of {train.batch}{until}"
        )
    lines["time"] = "told once some cycles have been timed"
    return lines


def in_columns(lines: Mapping[str, str]) -> str:
    """Headings and what stands behind them, in two columns."""
    width = max(map(len, lines))
    return "\n".join(f"  {heading:<{width}}  {line}" for heading, line in lines.items())


@dataclass(frozen=True)
class Closing:
    """What a run left.

    Attributes:
        lines: by heading.
        commands: what a user does next.
    """

    lines: Mapping[str, str]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([in_columns(self.lines), "  next:", *(f"    {command}" for command in self.commands)])


def closing(config: Config) -> Closing:
    """What a run that is over left, with its figures beside its teacher's where they are known."""
    student = f"{config.exported} ({', '.join(steps_in_words(steps) for steps in config.student.steps)})"
    lora = {"LoRA": str(config.exported_lora)} if config.exported_lora.is_dir() else {}
    spent = {"trained": trained} if (trained := ", ".join(_spent(config))) else {}
    figures = dict(_reported(config.out / REPORT)) or dict(_best(config))
    return Closing({"student": student} | lora | figures | spent, tuple(_next(config)))


def now() -> str:
    """The time of now in UTC."""
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds")


def _next(config: Config) -> Iterator[str]:
    student, teacher = shlex.quote(str(config.exported)), shlex.quote(config.teacher.path or "TEACHER")
    asked = ' --prompt "..."' if config.data.prompts is not None else ""
    yield f"fastgen sample {student}{asked}"
    if config.teacher.path is not None:
        digits = config.evaluate.protocol == "digits"
        judged = "--protocol digits --num-images 1797" if digits else "--reference IMAGES --extractor MODEL"
        yield f"fastgen eval --student {student} --teacher {teacher} {judged} --out report"
    yield f"fastgen watch {shlex.quote(str(config.out))}"


def _reported(file: Path) -> Iterator[tuple[str, str]]:
    """Rows of a report that the run wrote, each with its first figure."""
    for row in _json(file).get("rows", []):
        name, figure = next(iter(row["metrics"].items()), (None, None))
        if figure is not None and row["role"] != "real":
            yield row["title"], f"{name} {figure['value']:.4g}"


def _best(config: Config) -> Iterator[tuple[str, str]]:
    about = _json(config.out / "best" / "about.json")
    metric = about.get("metric")
    if metric in about and about[metric] is not None:
        yield "quality", f"{metric} {about[metric]:.4g} at {about['images']:,} images of stage {about['stage']}"


def _spent(config: Config) -> Iterator[str]:
    for stage in config.stages:
        about = _json(config.out / "stages" / stage.name / "about.json")
        if "seconds" in about:
            yield f"{stage.name} {about['images']:,} images in {spoken(about['seconds'])}"


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _size(pipeline: Pipeline) -> str:
    size = pipeline.size
    return f", {size['width']} x {size['height']} pixels" if {"width", "height"} <= size.keys() else ""


def _device(accelerator: Accelerator) -> str:
    device, processes = accelerator.device, accelerator.num_processes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return name if processes == 1 else f"{processes} x {name}, a process each"


def _own(network: nn.Module, start: nn.Module) -> str:
    """The student's parameters where its network is of another architecture than the teacher's."""
    return "" if start is network else f", a network of its own of {parameters(start) / 1e6:,.1f} M parameters"


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
