r"""Seconds and peaks of memory of all that a run does beside its steps, at real size: nothing is downloaded.

    python -m benchmarks.real_size --model sdxl

A pipeline with random weights is saved, and the config that is shipped for it carried out step by step as
`fastgen.distil` does: loaded, probed, prompts encoded, a few cycles, a checkpoint, a resume, the exports, their
verification, and the verification that anyone can repeat. What a stage does not fit into is printed with its error.
"""

import argparse
import gc
import json
import platform
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch

from fastgen.config.schema import Config
from fastgen.config.yaml_file import load
from fastgen.distillation.distil import accelerator_of
from fastgen.distillation.prompts import encode
from fastgen.distillation.steps import build_stage, export_student, verify
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import load_pipeline, probed
from fastgen.engine import checkpoint
from fastgen.engine.stage import Stage
from fastgen.errors import UserError

from .memory import Meter
from .pipelines import MODELS, Model
from .watches import GIB

CONFIGS = Path(__file__).parent.parent / "configs"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures."""
    told = _parser().parse_args(arguments)
    model = MODELS[told.model]
    if told.folder:
        told.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=told.folder) as folder:
        config = _config(model, Path(folder), told)
        meter = Meter(accelerator_of(config).device)
        found: dict[str, Any] = {"machine": _machine(meter.device), "model": told.model}
        try:
            _build(model, config, meter)
            found["saved_gib"] = _size(Path(config.teacher.path or "")) / GIB
            _carry_out(config, meter, cycles=told.cycles)
        except (UserError, torch.OutOfMemoryError, KeyboardInterrupt) as error:
            found["failed"] = f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
            found["failed_at"] = _way(error)
        found["exported_gib"] = {place.name: _size(place) / GIB for place in (config.exported, config.exported_lora)}
        found["stages"] = {name: asdict(spent) for name, spent in meter.spent.items()}
    text = json.dumps(found, indent=2)
    print(text)
    if told.out:
        told.out.write_text(text + "\n", encoding="utf-8")
    return found


def _way(error: BaseException) -> list[str]:
    """The calls that led to an error, the outermost first."""
    calls = traceback.extract_tb(error.__traceback__)
    return [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls]


def _build(model: Model, config: Config, meter: Meter) -> None:
    with meter.stage("build"):
        pipe = model.built(meter.device, torch.bfloat16)
    with meter.stage("save"):
        pipe.save_pretrained(config.teacher.path, safe_serialization=True)
    del pipe
    gc.collect()


def _carry_out(config: Config, meter: Meter, *, cycles: int) -> None:
    with meter.stage("load"):
        pipe = load_pipeline(config, meter.device)
    with meter.stage("probe"):
        pipeline = probed(config, pipe)
    with meter.stage("student"):
        student = Student(config, pipeline, meter.device)
    with meter.stage("encode"):
        encode(config, pipeline, accelerator_of(config))
    with meter.stage("roles"):
        stage = build_stage(student)
    for number in range(cycles):
        with meter.stage(f"cycle {number}"):
            stage.cycle()
    stage = _resumed(student, stage, config.out / "checkpoints", meter)
    with meter.stage("release"):
        export_student(student, stage)
    del student, stage, pipeline, pipe
    gc.collect()
    for place in (config.exported, config.exported_lora):
        with meter.stage(f"verify {place.name}"):
            verify(place, base=config.teacher.path if place == config.exported_lora else None, device=str(meter.device))


def _resumed(student: Student, stage: Stage, folder: Path, meter: Meter) -> Stage:
    """The stage from its checkpoint; the one that was trained is let go before."""
    with meter.stage("checkpoint"):
        checkpoint.save(folder, stage.position.images, stage.snapshot(), keep=1)
    del stage
    gc.collect()
    with meter.stage("resume"):
        stage = build_stage(student)
        found = checkpoint.load_newest(folder, warn=print)
        assert found is not None, "a checkpoint was written"
        stage.restore(found.snapshot)
    return stage


def _config(model: Model, folder: Path, told: argparse.Namespace) -> Config:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a picture of thing {i}\n" for i in range(told.prompts)), encoding="utf-8")
    settings = [
        f"teacher.path={folder / 'teacher'}",
        f"out={folder / 'run'}",
        f"cache={folder / 'cache'}",
        f"data.prompts={prompts}",
        f"device={told.device}",
        f"train.batch={told.batch}",
        "log.previews=0",
        "train.optim.warmup=0",  # so that these few updates change the weights
        "train.optim.lr=1e-3",
        *model.settings,
        *told.settings,
    ]
    return load(CONFIGS / f"{model.config}.yaml", settings)


def _size(folder: Path) -> int:
    """Bytes of a folder's files, hard links once."""
    found = {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return sum(found.values())


def _machine(device: torch.device) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": gpu, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_size", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--folder", type=Path, help="for the files, which are removed (default: the system's own)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("settings", nargs="*", help="of the config, such as lora.rank=16")
    return parser


if __name__ == "__main__":
    main()
