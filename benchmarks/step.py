r"""Seconds of a generator and a fake turn, images per second and peak memory of a DMD2 trio, beside a plain loop.

    python -m benchmarks.step --size sdxl --sharing lora --rank 64 --batch 4 --gan --cycles 3 --profile --out step.json

The stage is that of a real run, on random weights. Images per second count every turn's batch, as NVlabs/FastGen does.
"""

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator

from fastgen.config.lora import Base
from fastgen.engine.stage import Stage, Turned
from fastgen.objectives import Batch, Turn

from .networks import SIZES
from .plain import plain_loop
from .record import about, written
from .trio import Setting, stage_on
from .watches import GIB, Watch, flops, kept, medians, peak, profiled


class Timed(Stage):
    """A stage that marks the end of each turn; the batches of a turn are made within its time."""

    watch: Watch

    def _turn(self, turn: Turn, batches: list[Batch]) -> Turned:
        taken = super()._turn(turn, batches)
        self.watch.mark(turn[0])
        return taken

    def lap(self) -> list[tuple[str, float]]:
        """The seconds of each turn of one cycle."""
        self.watch.mark("start")
        self.cycle()
        return self.watch.laps()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures."""
    told = _parser().parse_args(arguments)
    accelerator = Accelerator(cpu=told.device == "cpu")
    setting = Setting(**{field.name: getattr(told, field.name) for field in fields(Setting)})
    found: dict[str, Any] = {
        "benchmark": "step",
        "machine": about(accelerator.device),
        "size": told.size,
        "setting": asdict(setting),
    }
    try:
        found |= _trio(told, setting, accelerator)
        gc.collect()  # the stage's networks must not stand beside the plain loop's
        if told.plain:
            found["plain"] = _beside(plain_loop, told, setting, accelerator.device, found["flops"])
    except torch.OutOfMemoryError as error:
        found["failed"] = f"out of memory: {str(error).splitlines()[0]}"
    return written(found, told.out)


def _trio(told: argparse.Namespace, setting: Setting, accelerator: Accelerator) -> dict[str, Any]:
    """Figures of the trio itself."""
    device = accelerator.device
    stage = stage_on(SIZES[told.size], setting, Timed, accelerator)
    assert isinstance(stage, Timed)
    stage.watch = Watch(device)
    built = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else None
    peak(device)
    laps = [stage.lap() for _ in range(told.warmup + told.cycles)]
    most = peak(device)
    seconds = medians(laps[told.warmup :])
    totals = [sum(took for _, took in lap) for lap in laps]
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in stage.feed.pipeline.network.parameters()),
        "seconds": {**seconds, "first cycle": totals[0], "repeats": totals[told.warmup :]},
        "images_per_second": setting.batch * (1 + setting.fake_turns) / seconds["cycle"],
        "built_gib": built,
        "peak_gib": most,
        "reserved_gib": torch.cuda.memory_reserved(device) / GIB if device.type == "cuda" else None,
        "kept_gib": kept(device),
        "flops": None if setting.compile or setting.graphs else flops(stage.cycle),  # counts eager kernels
    }
    if told.profile:
        profile = asdict(profiled(stage.cycle, device))
        busy = profile["busy"]
        found["profile"] = {**profile, "busy_share": None if busy is None else busy / seconds["cycle"]}
    return found


def _beside(
    loop: Any, told: argparse.Namespace, setting: Setting, device: torch.device, counted: int | None
) -> dict[str, Any]:
    """The plain loop, and its seconds for as many FLOPs as the trio's cycle has."""
    plain: dict[str, Any] = loop(SIZES[told.size], setting, device, cycles=told.cycles, warmup=told.warmup)
    if counted is not None:
        plain["seconds"]["cycle of the same FLOPs"] = plain["seconds"]["cycle"] * counted / plain["flops"]
    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="sdxl", help="network (default: SDXL at 1024 px)")
    parser.add_argument("--sharing", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--base", choices=("auto", *get_args(Base)), default="auto", help="of shared roles")
    parser.add_argument("--memory", choices=("ample", "low"), default="ample", help="low swaps blocks")
    parser.add_argument("--guidance", type=float, default=8.0, help="of the real score; 1 is one call of it")
    parser.add_argument("--fake-turns", type=int, default=4, help="of a cycle")
    parser.add_argument("--optimizer", choices=("adamw", "adamw8bit", "muon"), default="adamw")
    parser.add_argument("--masters", choices=("fp32", "split", "bf16"), default="fp32")
    parser.add_argument("--gradients", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--ema-device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--sequence-parallel", type=int, default=1, help="processes that share a sample's tokens")
    switches = {"gan": False, "one-pass": False, "checkpointing": True, "graphs": False}
    for name, default in switches.items():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
    parser.add_argument(
        "--compile", nargs="?", const=True, default=False, choices=("all",), help="blocks that repeat, or all"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_const", const=False)
    parser.add_argument("--every", type=int, default=1, help="of so many blocks one is computed again, if any is")
    parser.add_argument("--cycles", type=int, default=3, help="that the medians are of")
    parser.add_argument("--warmup", type=int, default=2, help="cycles before them")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="a plain loop beside it")
    parser.add_argument("--profile", action="store_true", help="kernels, busy share, host waits and top operations")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
