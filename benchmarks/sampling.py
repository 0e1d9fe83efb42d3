r"""Seconds of a picture by a student beside its teacher, through plain Diffusers, to pixels.

    python -m benchmarks.sampling --student out/student --teacher my/teacher --steps 1 4 --teacher-steps 25
    python -m benchmarks.sampling --model sdxl --steps 4 --teacher-steps 25 --out results/sampling.json

A student is called without guidance, a teacher with it. Where no folders are given, both are a pipeline of real size
with random weights, whose pictures take as long.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from fastgen.models.pipelines.arguments import classifier_free, conditioning_kind, parameters

from .pipelines import MODELS
from .record import about, repeated, written
from .watches import peak, synchronise

GUIDED = 5.0


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures."""
    told = _parser().parse_args(arguments)
    device = torch.device("cuda" if told.device == "auto" and torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        "benchmark": "sampling",
        "machine": about(device, seed=told.seed),
        "setting": {"model": told.model, "batch": told.batch, "dtype": told.dtype, "size": told.size},
    }
    student = _opened(told, told.student, device)
    found["student"] = {str(steps): _timed(told, student, steps, 1.0, device) for steps in told.steps}
    teacher = student if told.teacher == told.student else _opened(told, told.teacher, device)
    found["teacher"] = {str(told.teacher_steps): _timed(told, teacher, told.teacher_steps, GUIDED, device)}
    slow = found["teacher"][str(told.teacher_steps)]["seconds"]
    found["times_as_fast"] = {steps: slow / one["seconds"] for steps, one in found["student"].items()}
    return written(found, told.out)


def _opened(told: argparse.Namespace, folder: str | None, device: torch.device) -> Any:
    dtype = getattr(torch, told.dtype)
    if folder is None:
        pipe = MODELS[told.model].built(device, dtype)
    else:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _timed(told: argparse.Namespace, pipe: Any, steps: int, guidance: float, device: torch.device) -> dict[str, Any]:
    """Seconds of one call, the median of its repeats after warm-up."""
    call = {**_asked(pipe, told.batch), **classifier_free(pipe, guidance), "num_inference_steps": steps}
    takes = parameters(pipe)
    call |= {name: told.size for name in ("height", "width") if told.size and name in takes}
    taken: list[float] = []
    peak(device)
    for _ in range(told.warmup + told.repeats):
        generator = torch.Generator().manual_seed(told.seed)
        synchronise(device)
        start = time.perf_counter()
        pipe(**call, generator=generator, output_type="pt")
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return {**repeated(taken[told.warmup :]), "guidance": guidance, "peak_gib": peak(device)}


def _asked(pipe: Any, rows: int) -> dict[str, Any]:
    asked: dict[str, dict[str, Any]] = {
        "none": {"batch_size": rows},
        "label": {"class_labels": [0] * rows},
        "prompt": {"prompt": ["a red fox"] * rows},
    }
    return asked[conditioning_kind(pipe)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="sdxl", help="with random weights, where no folder is given")
    parser.add_argument("--student", metavar="FOLDER")
    parser.add_argument("--teacher", metavar="FOLDER")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="of the student")
    parser.add_argument("--teacher-steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, metavar="PX", help="height and width (default: the pipeline's own)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
