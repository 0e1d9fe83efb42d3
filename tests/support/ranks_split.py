"""What processes do that split networks or tokens among them; targets of `small_run.in_processes`."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from small_run import Watched, stage

from benchmarks.networks import SIZES
from benchmarks.scaling import timed_stage
from benchmarks.trio import Setting, stage_on
from fastgen.config.lora import LoRAConfig
from fastgen.engine import checkpoint
from fastgen.engine import stage as loop
from fastgen.engine.distributed import average, on_first
from fastgen.engine.memory import room_for
from fastgen.engine.quality import for_sampling, left_by
from fastgen.models import sharding
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.sharding import Slice, whole
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed


def rivals() -> Watched:
    """An objective of three optimizers, two of which step after the same turn."""
    return Watched(ratio=1, guidance=Fixed(1.5), gan=GAN(weight=0.5, learned=0.5))


SLICED: dict[str, dict[str, Any]] = {
    "full": {"gradient_checkpointing": True, "micro_batch": 1},
    "adapters": {"lora": LoRAConfig(rank=2, norms=True)},
}
"""Settings of a stage that two processes train in slices and one as a whole."""


def sliced(teacher: Path, name: str, *, sharding: str = "none") -> loop.Stage:
    """Such a stage of rivals."""
    settings = {"micro_batch": 2, **SLICED[name]}  # of the whole batch of four
    pipeline = Pipeline(load(teacher, device="cpu"))
    return stage(pipeline, rivals(), steps=4, ema=0.9, sharding=sharding, **settings)


def saved(trained: loop.Stage, folder: Path) -> Path:
    """A checkpoint of a stage, which all processes write together."""
    write = partial(checkpoint.save, folder, 1, keep=1)
    checkpoint.written_together(trained.snapshot(), write)
    return folder / "00000001"


def train_in_slices(teacher: Path, folder: Path, slicing: str = "full") -> None:
    """In one of two processes, on a host each: training in slices, and from one process's checkpoint on."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    Accelerator(cpu=True)
    sharding.BLOCK = 2**10
    rank = int(os.environ["RANK"])
    for name in SLICED:
        trained = sliced(teacher, name, sharding=slicing)
        told: dict[str, Any] = {"gradients": gradients_of(trained), "figures": trained.cycle()}
        saved(trained, folder / name)
        told["left"] = left_by(trained)
        told["held"] = {role: sum(p.numel() for p in trained.roles.parameters(role)) for role in trained.roles.members}
        with for_sampling(trained):
            told["shown"] = on_first(partial(_drawn, trained))
        told["again"] = trained.cycle()
        other = sliced(teacher, name, sharding=slicing)
        told["room"] = room_for(other)
        found = checkpoint.newest_of_the_first(folder / f"{name} of one", warn=print)
        assert found is not None
        other.restore(found.snapshot)
        saved(other, folder / f"{name} of one again")
        told["resumed"] = other.cycle()
        torch.save(told, folder / f"{name} {rank}.pt")


PARTED: dict[str, dict[str, Any]] = {
    "full": {"sharing": "full", "precision": "fp32", "checkpointing": 2},
    "adapters": {"rank": 2, "precision": "fp32", "checkpointing": False},
}
"""Settings of a trio of tiny Wans whose tokens two processes share, and one has."""


def parted(name: str, size: int) -> loop.Stage:
    """Such a stage; its weights are no longer those at which half of its outputs are zero."""
    torch.manual_seed(0)
    setting = Setting(batch=2, fake_turns=1, sequence_parallel=size, guidance=2.0, **PARTED[name])
    return stage_on(SIZES["tiny wan"], setting, loop.Stage, Accelerator(cpu=True))


def train_in_parts(folder: Path) -> None:
    """In one of two processes: what each steps with, and a picture that the first makes alone."""
    rank = int(os.environ["RANK"])
    for name in PARTED:
        trained, tokens = parted(name, 2), list[int]()
        block: Any = trained.roles.network("generator").net.get_submodule("blocks.1")
        seeing = block.register_forward_pre_hook(lambda _, told, tokens=tokens: tokens.append(told[0].shape[1]))
        told: dict[str, Any] = {"gradients": gradients_of(trained), "tokens": tokens}
        seeing.remove()
        told["figures"] = trained.cycle()
        with for_sampling(trained):
            told["shown"] = on_first(partial(_drawn, trained))
        told["again"] = trained.cycle()
        told["entered"] = entered(trained)
        torch.save(told, folder / f"{name} {rank}.pt")


def train_in_parts_on_gpus(folder: Path, size: int) -> None:
    """In one process, or in one of two with a GPU each: what adapters of a tiny Wan in bf16 step with."""
    torch.manual_seed(0)
    setting = Setting(batch=2, fake_turns=1, sequence_parallel=size, guidance=2.0, rank=4)
    accelerator = Accelerator()
    found = gradients_of(stage_on(SIZES["tiny wan"], setting, loop.Stage, accelerator))
    if accelerator.is_main_process:
        torch.save(found, folder / f"parts {size}.pt")


def train_on_gpus(folder: Path, count: int) -> None:
    """In one of one or two processes with a GPU each: the figures of three cycles of a tiny trio with GAN."""
    torch.backends.cudnn.allow_tf32 = False
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    for sharing in ("lora", "full"):
        for slicing in ("none", "full")[:count]:
            torch.manual_seed(0)  # of the weights, whatever was built before
            setting = Setting(sharing=sharing, rank=2, batch=4, gan=True, precision="fp32", fake_turns=1)
            trained = timed_stage(setting, "tiny", accelerator, slicing, micro_batch=2)
            figures = [trained.cycle() for _ in range(3)]
            if accelerator.is_main_process:
                torch.save(figures, folder / f"{count} {sharing} {slicing}.pt")


def gradients_of(trained: loop.Stage) -> dict[str, list[torch.Tensor]]:
    """Of each update by role, whole, as they are stepped with; of this cycle and of those to come."""
    found: dict[str, list[torch.Tensor]] = {}
    for role, optimizer in trained.optimizers.items():
        noted = partial(_noted_step, optimizer, optimizer.step, found.setdefault(role, []))
        optimizer.step = noted  # type: ignore[method-assign]
    trained.cycle()
    return found


def _noted_step(optimizer: Any, step: Callable[..., None], found: list[torch.Tensor], **settings: Any) -> None:
    gradients = [p.sharded(p.grad) if isinstance(p, Slice) else p.grad for p in optimizer.parameters]
    found.append(torch.cat([whole(gradient).flatten() for gradient in gradients]))
    step(**settings)


def entered(trained: loop.Stage) -> torch.Tensor:
    """The gradient of what a network is told, as a mean over processes."""
    x, cond = trained.feed.example()
    x = torch.ones_like(x).requires_grad_()
    t = torch.full((1,), 0.5, dtype=torch.float64)
    trained.roles.generator(x, t, cond).x0.square().sum().backward()
    assert x.grad is not None
    return average(x.grad)


def _drawn(trained: loop.Stage) -> torch.Tensor:
    x, cond = trained.feed.example()
    t = torch.full((1,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        return trained.roles.generator(x + 1, t, cond).x0
