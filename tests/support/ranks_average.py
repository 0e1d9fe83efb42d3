"""What two processes do that train alike: averages, checkpoints, skips; targets of `small_run.in_processes`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from breaking import Spiking
from host_tensors import HostTensors
from ranks_split import rivals
from small_run import parameters, stage, train_several_steps

from fastgen.config.guards import GuardsConfig
from fastgen.config.lora import LoRAConfig
from fastgen.engine import averaging, checkpoint, guard
from fastgen.engine.averaging import Averager
from fastgen.engine.distributed import average, barrier, broadcast, on_first
from fastgen.errors import UserError
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2


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


SEVERAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one micro-batch": ({"micro_batch": 2}, {}),
    "two micro-batches": ({"micro_batch": 1}, {"micro_batch": 1}),
    "adapters": ({"micro_batch": 2, "lora": LoRAConfig(rank=2)}, {"lora": LoRAConfig(rank=2)}),
}
"""Settings of one process and of each of two, which are to train alike."""


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


def _note(events: list[str], number: int, _: torch.Tensor) -> None:
    events.append(f"at {number}")


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


def patience(rank: int) -> dict[str, Any]:
    """What one of two processes gets of work that the first one does alone, and of work that fails there."""

    def fails() -> None:
        raise UserError("no space left")

    got: dict[str, Any] = {"alone": on_first(lambda: {"by": rank}), "shared": broadcast({"by": rank})}
    try:
        on_first(fails)
    except UserError as error:
        got["failure"] = str(error)
    barrier()
    return got
