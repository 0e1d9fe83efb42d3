"""What is done in each of several processes that train together: targets of `small_run.in_processes`."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from small_run import Spiking, Watched, parameters, run_config, stage, train_several_steps
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import fastgen.distillation.distil as distillation
from benchmarks.networks import SIZES
from benchmarks.scaling import timed_stage
from benchmarks.trio import Setting, stage_on
from fastgen.config.guards import GuardsConfig
from fastgen.config.schema import Config, LoRAConfig
from fastgen.distillation.distil import distil
from fastgen.engine import averaging, checkpoint, guard
from fastgen.engine import stage as loop
from fastgen.engine.averaging import Averager
from fastgen.engine.distributed import alone, average, meet, shared
from fastgen.engine.memory import room_for
from fastgen.engine.quality import left_by, shown
from fastgen.errors import UserError
from fastgen.models import sharding
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.sharding import Slice, whole
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed


def train_a_rank(teacher: Path, folder: Path) -> None:
    """In one of two processes: training, and averages of what the processes have."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rank, pipeline = accelerator.process_index, Pipeline(load(teacher, device="cpu"))
    with HostTensors() as host:
        record = train_several_steps(pipeline, accelerator=accelerator)
    record.host_made = host.averaged
    record.patience = patience(rank)
    shapes = {"both": torch.ones(2), "second only": torch.ones(1), "half": torch.ones(1, dtype=torch.bfloat16)}
    shapes["nobody"] = torch.ones(1)
    members = {name: torch.nn.Parameter(value) for name, value in shapes.items()}
    for name, p in members.items():
        absent = name == "nobody" or (name == "second only" and rank == 0)
        p.grad = None if absent else torch.full_like(p, rank + 1)
    Averager(list(members.values())).finish()
    values = average(torch.full((1,), rank + 1.0))
    record.averaged = {**{name: p.grad for name, p in members.items() if p.grad is not None}, "values": values}
    record.travelled = travelled()
    record.resumed = resumed_apart(pipeline, folder / f"disk of {rank}", rank)
    record.skipped = skipped(pipeline)
    torch.save(record, folder / f"{rank}.pt")
    averaging.BUCKET = 2**9  # many buckets, some of a single parameter
    for name, (_, several) in SEVERAL.items():
        record = train_several_steps(pipeline, rivals(), cycles=2, accelerator=accelerator, **several)
        torch.save(record, folder / f"{name} {rank}.pt")


def skipped(pipeline: Pipeline) -> dict[str, Any]:
    """What each of two processes does where the second one's loss alone spikes in the third of four cycles."""
    guard.LEAST = 2
    trained = stage(pipeline, Spiking(at=(2,), rank="1"), guards=GuardsConfig(spikes="skip"))
    held = []
    for _ in range(4):
        trained.cycle()
        held.append(parameters(trained, "generator"))
    told = [incident.said for incident in trained.guard.taken()]
    return {"held": held, "told": told, "updates": trained.optimizers["generator"].updates}


SEVERAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one micro-batch": ({"micro_batch": 2}, {}),
    "two micro-batches": ({"micro_batch": 1}, {"micro_batch": 1}),
    "adapters": ({"micro_batch": 2, "lora": LoRAConfig(rank=2)}, {"lora": LoRAConfig(rank=2)}),
}
"""Settings of one process and of each of two, which are to train alike."""


def rivals() -> Watched:
    """An objective of three optimizers, two of which step after the same turn."""
    return Watched(ratio=1, guidance=Fixed(1.5), gan=GAN(weight=0.5, learned=0.5))


def _note(events: list[str], number: int, _: torch.Tensor) -> None:
    events.append(f"at {number}")


def travelled() -> list[str]:
    """In which order a second backward pass comes to each of four layers and sends gradients."""
    events: list[str] = []
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(4)]
    averager = Averager([layer.weight for layer in layers])
    size, averaging.BUCKET = averaging.BUCKET, 16
    reduce = dist.all_reduce

    def noted(*args: Any, **kwargs: Any) -> Any:
        events.append("sent")
        return reduce(*args, **kwargs)

    for _ in range(2):
        x = torch.ones(1, 4)
        for number, layer in enumerate(layers):
            x = layer(x)
            x.register_hook(partial(_note, events, number))
        events.clear()
        dist.all_reduce = noted
        with averager.listening():
            x.sum().backward()
        dist.all_reduce = reduce
        averager.finish()
    averaging.BUCKET = size
    return events


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
        with shown(trained):
            told["shown"] = alone(partial(_drawn, trained))
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
        with shown(trained):
            told["shown"] = alone(partial(_drawn, trained))
        told["again"] = trained.cycle()
        told["entered"] = _entered(trained)
        torch.save(told, folder / f"{name} {rank}.pt")


def train_in_parts_on_gpus(folder: Path, size: int) -> None:
    """In one process, or in one of two with a GPU each: what adapters of a tiny Wan in bf16 step with."""
    torch.manual_seed(0)
    setting = Setting(batch=2, fake_turns=1, sequence_parallel=size, guidance=2.0, rank=4)
    accelerator = Accelerator()
    found = gradients_of(stage_on(SIZES["tiny wan"], setting, loop.Stage, accelerator))
    if accelerator.is_main_process:
        torch.save(found, folder / f"parts {size}.pt")


def _entered(trained: loop.Stage) -> torch.Tensor:
    """The gradient of what a network is told, as a mean over processes."""
    x, cond = trained.feed.example()
    x = torch.ones_like(x).requires_grad_()
    t = torch.full((1,), 0.5, dtype=torch.float64)
    trained.roles.generator(x, t, cond).x0.square().sum().backward()
    assert x.grad is not None
    return average(x.grad)


def fail_on_the_second(config: Config) -> None:
    """In one of two processes: a run whose second process breaks off in its second cycle."""
    cycle = loop.Stage.cycle

    def cycle_or_fail(self: loop.Stage) -> dict[str, float]:
        if os.environ["RANK"] == "1" and self.position.cycle == 1:
            raise UserError("an image of this disk cannot be read")
        return cycle(self)

    loop.Stage.cycle = cycle_or_fail  # type: ignore[method-assign]
    distil(config, recipes=config.out.parent)


def _drawn(trained: loop.Stage) -> torch.Tensor:
    x, cond = trained.feed.example()
    t = torch.full((1,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        return trained.roles.generator(x + 1, t, cond).x0


def train_on_gpus(folder: Path, count: int) -> None:
    """In one of one or two processes with a GPU each: the figures of three cycles of a tiny trio with GAN."""
    torch.backends.cudnn.allow_tf32 = False
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    for sharing in ("lora", "full"):
        for slicing in ("none", "full")[:count]:
            setting = Setting(sharing=sharing, rank=2, batch=4, gan=True, precision="fp32", fake_turns=1)
            trained = timed_stage(setting, "tiny", accelerator, slicing, micro_batch=2)
            figures = [trained.cycle() for _ in range(3)]
            if accelerator.is_main_process:
                torch.save(figures, folder / f"{count} {sharing} {slicing}.pt")


def resumed_apart(pipeline: Pipeline, disk: Path, rank: int) -> dict[str, Any]:
    """What each of two processes goes on from, with disks of their own."""
    trained, other = (stage(pipeline, DMD2(ratio=1)) for _ in range(2))
    trained.cycle()
    with torch.no_grad():
        trained.optimizers["generator"].parameters[0].fill_(0.5 + rank)
    told: dict[str, Any] = {"own": parameters(trained, "generator")}
    (disk / "a").mkdir(parents=True)
    if rank == 0:
        checkpoint.save(disk / "a", 3, trained.snapshot(), keep=1)
    found = checkpoint.newest_of_the_first(disk / "a", warn=print)
    assert found is not None
    other.restore(found.snapshot)
    told |= {"step": found.step, "position": other.position.cycle, "got": parameters(other, "generator")}
    told["moments"] = other.optimizers["fake_score"].optimizer.state_dict()["state"]
    if rank == 1:
        checkpoint.save(disk / "b", 3, trained.snapshot(), keep=1)
    told["of the second alone"] = checkpoint.newest_of_the_first(disk / "b", warn=print)
    if rank == 0:
        (disk / "a" / "00000003" / "state.json").write_text("{}")
    try:
        checkpoint.newest_of_the_first(disk / "a", warn=print)
    except UserError as error:
        told["damaged"] = str(error)
    return told


class HostTensors(TorchFunctionMode):
    """Within, `averaged` lists what is all-reduced although it would lie in main memory when networks are on a GPU.

    That is what was made without a device and never sent to one, or computed from nothing else.
    """

    MAKERS = (torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange)

    def __init__(self) -> None:
        super().__init__()
        self.averaged: list[torch.Size] = []
        self._made: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and torch.device in map(type, (*args, *kwargs.values())):
            return func(*args, **kwargs).clone()
        result = func(*args, **kwargs)
        told = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = func in self.MAKERS and kwargs.get("device") is None
        if isinstance(result, torch.Tensor) and (made or (told and all(map(self._host, told)))):
            self._made[result.untyped_storage().data_ptr()] = result  # held, so that nothing else gets its place
        return result

    def _host(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._made

    def __enter__(self) -> "HostTensors":
        self._reduce, dist.all_reduce = dist.all_reduce, self._noted
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        dist.all_reduce = self._reduce
        super().__exit__(*error)

    def _noted(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._host(tensor):
            self.averaged.append(tensor.shape)
        return self._reduce(tensor, *args, **kwargs)


def patience(rank: int) -> dict[str, Any]:
    """What one of two processes gets of work that the first one does alone, and of work that fails there."""

    def fails() -> None:
        raise UserError("no space left")

    got: dict[str, Any] = {"alone": alone(lambda: {"by": rank}), "shared": shared({"by": rank})}
    try:
        alone(fails)
    except UserError as error:
        got["failure"] = str(error)
    meet()
    return got


def run_with_recipe(folder: Path) -> None:
    """In one of several processes: distils a teacher that does not exist yet."""
    teacher = {"path": str(folder / "teacher"), "recipe": "teacher.yaml"}
    stages = [{"objective": {"name": "dmd2", "ratio": 1}, "train": {"images": 4, "batch": 2}}]
    distil(run_config(folder, teacher=teacher, stages=stages), recipes=folder)


def resume_with_disks_of_their_own(config: Config, disks: Sequence[Path]) -> None:
    """In one of several processes, of which the first alone has the run on its disk."""
    rank = int(os.environ["RANK"])
    cycle, place = loop.Stage.cycle, disks[rank]

    def noted(self: loop.Stage) -> dict[str, float]:
        place.mkdir(exist_ok=True)
        with (place / "cycles").open("a") as file:
            file.write(f"{self.position.cycle} {parameters(self, 'generator').double().sum().item():.9f}\n")
        return cycle(self)

    loop.Stage.cycle = noted  # type: ignore[method-assign]
    distil(config.model_copy(update={"out": place}), recipes=place, resume=True)


def run_with_a_slow_export(folder: Path) -> None:
    """In one of several processes: the same, where an export takes longer than the group of processes waits."""
    PartialState(cpu=True, timeout=timedelta(seconds=15))
    release = distillation.release

    def slow(*args: Any) -> None:
        time.sleep(20)
        release(*args)

    distillation.release = slow
    run_with_recipe(folder)
