"""Small training runs: a stage on a tiny pipeline, a whole run from a config, and either in a process of its own."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from isolated import verify_here

from fastgen.config.guards import USUAL, GuardsConfig
from fastgen.config.lora import LoRAConfig
from fastgen.config.pairs import PairsConfig
from fastgen.config.schema import Config, StageConfig
from fastgen.config.train import TrainConfig
from fastgen.config.yaml_file import dump
from fastgen.data import Items, Loader, Source
from fastgen.distillation.distil import distil
from fastgen.engine import pairs
from fastgen.engine import stage as loop
from fastgen.engine.feed import Feed, PairSet
from fastgen.engine.roles import build_roles
from fastgen.engine.sharding import shard_roles
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.walk import Plan
from fastgen.objectives import DMD2, KnowledgeDistillation
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import even_grid

CPU = torch.device("cpu")

# What a process imports takes seconds, and its server has it; a GPU knows no forks.
PROCESSES = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")


@dataclass(frozen=True)
class Stripes(Source):
    """Forty 8 x 8 pictures of ten classes; which stripe is lit tells the class."""

    has_images = True
    num_classes = 10
    prompts = None

    def check(self) -> None: ...

    def __len__(self) -> int:
        return 40

    def items(self, indices: Sequence[int]) -> Items:
        labels = torch.tensor([i % 10 for i in indices])
        images = torch.full((len(labels), 3, 8, 8), -0.5)
        images[torch.arange(len(labels)), labels % 3, labels % 8] = 0.5
        return Items(images=images, labels=labels)


def stage(
    pipeline: Pipeline,
    objective: Any,
    *,
    steps: int | Sequence[int] = 1,
    accelerator: Accelerator | None = None,
    lora: LoRAConfig | None = None,
    guards: GuardsConfig = USUAL,
    **train: Any,
) -> loop.Stage:
    """A stage on the CPU, with `lora` on one network; `train` changes its settings (4 images, a smooth optimizer)."""
    optim = {"lr": 1e-3, "eps": 1e-3, **train.pop("optim", {})}
    settings = TrainConfig.model_validate({"images": 1000, "batch": 4, "optim": optim, **train})
    config = StageConfig(name="small", objective=objective, train=settings)
    sharing, base = "full" if lora is None else "lora", "bf16" if settings.precision == "bf16" else "fp32"
    plan = Plan([even_grid(count) for count in ([steps] if isinstance(steps, int) else steps)])
    roles = build_roles(pipeline, config, plan=plan, weights={}, seed=0, sharing=sharing, lora=lora, base=base)
    shard_roles(roles, settings.sharding, CPU)
    loader = Loader(Stripes(), seed=0)
    noise = torch.randn((2, 16, *pipeline.shape), generator=torch.Generator().manual_seed(1))
    pairs = PairSet(noise[0], noise[1].clamp(-1, 1), loader) if objective.needs.pairs else None
    feed = Feed(pipeline, loader, CPU, objective.needs, pairs)
    return loop.Stage(config, roles, feed, accelerator or Accelerator(cpu=True), guards=guards)


def parameters(stage: loop.Stage, role: str) -> torch.Tensor:
    """All of a role's parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in stage.roles.parameters(role)])


@dataclass
class Record:
    """What a few cycles did: figures by cycle, gradients by role and update, and what `Watched` saw."""

    figures: list[dict[str, float]] = field(default_factory=list)
    gradients: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    depths: list[float] = field(default_factory=list)
    noises: list[float] = field(default_factory=list)
    averaged: dict[str, torch.Tensor] = field(default_factory=dict)
    host_made: list[torch.Size] = field(default_factory=list)
    travelled: list[str] = field(default_factory=list)
    patience: dict[str, Any] = field(default_factory=dict)
    resumed: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, Any] = field(default_factory=dict)


def recorded(stage: loop.Stage, cycles: int) -> Record:
    """Runs some cycles and keeps the figures, every gradient as it was applied."""
    record = Record()
    for role, optimizer in stage.optimizers.items():
        optimizer.step = _noting(optimizer, record.gradients.setdefault(role, []))
    for _ in range(cycles):
        record.figures.append(stage.cycle())
    record.parameters = {role: parameters(stage, role) for role in stage.optimizers}
    return record


def _noting(optimizer: Any, gradients: list[torch.Tensor]) -> Callable[..., None]:
    step = optimizer.step

    def note_and_step(**settings: Any) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in optimizer.parameters if p.grad is not None]).clone())
        step(**settings)

    return note_and_step


@dataclass(frozen=True)
class Watched(DMD2):
    """DMD2 that notes the time of the generator's last call, and one number of what it generated."""

    depths: list[float] = field(default_factory=list)
    noises: list[float] = field(default_factory=list)

    def generator(self, roles: Any, batch: Any) -> dict[str, torch.Tensor]:
        terms = super().generator(roles, batch)
        self.depths.append(float(batch.landing.t[0]))
        self.noises.append(float(batch.landing.x[0, 0, 0, 0]))
        return terms


def train_several_steps(
    pipeline: Pipeline, objective: Watched | None = None, *, cycles: int = 3, **settings: Any
) -> Record:
    """Some cycles of DMD2 to four steps."""
    objective = objective or Watched(ratio=2, guidance=Fixed(1.5))
    record = recorded(stage(pipeline, objective, steps=4, **settings), cycles)
    record.depths, record.noises = objective.depths, objective.noises
    return record


def run_config(folder: Path, *, images: int = 20, **changes: Any) -> Config:
    """A run of ten cycles of kd and ten of dmd2 on 16 px digits; `folder / "teacher"` is a saved pipeline."""
    train = {"images": images, "batch": 2, "ema": 0.9, "optim": {"warmup": 3, "schedule": "cosine"}}
    settings = {
        "out": folder / "run",
        "device": "cpu",
        "teacher": {"path": str(folder / "teacher")},
        "student": {"steps": [2]},
        "data": {"source": "digits"},
        "pairs": {"count": 6, "steps": 2},
        "log": {"every": 1, "previews": 0, "trackers": []},
        "checkpoints": {"every": 6},
        "stages": [
            {"objective": {"name": "kd"}, "train": train},
            {"objective": {"name": "dmd2", "ratio": 1}, "train": train, "carry": {"fake_score": "generator"}},
        ],
    }
    return Config.model_validate({**settings, **changes})


def run_or_die(config: Config, resume: bool, at: tuple[int, int] | None) -> None:
    """In a process of its own: a run, ended by kill -9 before cycle `at` = (stage, cycle)."""
    cycle = loop.Stage.cycle

    def cycle_or_die(self: loop.Stage) -> dict[str, float]:
        if (self.index, self.position.cycle) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return cycle(self)

    loop.Stage.cycle = cycle_or_die  # type: ignore[method-assign]
    distil(config, recipes=config.out.parent, resume=resume)


def write_recipe(folder: Path) -> None:
    """The config of a teacher that two updates make, in `folder / "teacher.yaml"`."""
    network = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "num_class_embeds": 11,
    }
    scheduler = {"class": "DDIMScheduler", "prediction_type": "v_prediction"}
    parts = {"unet": {"class": "UNet2DModel", **network}, "scheduler": scheduler}
    new = {"pipeline": "ConsistencyModelPipeline", "parts": parts}
    recipe = run_config(
        folder,
        out=folder / "pretraining",
        export=folder / "teacher",
        teacher={"new": new, "num_classes": 10, "null_label": 10},
        stages=[{"objective": {"name": "pretrain"}, "train": {"images": 4, "batch": 2}}],
    )
    (folder / "teacher.yaml").write_text(dump(recipe))


def in_processes(count: int, target: Callable[..., None], *args: Any) -> list[int | None]:
    """Exit codes of `count` processes of one thread that meet on a free port, as torchrun would start them.

    What they say is printed here, where pytest shows it beside a failure.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        said = [Path(folder) / str(rank) for rank in range(count)]
        processes = [
            PROCESSES.Process(target=_ranked, args=(rank, count, port, said[rank], target, args))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process, file in zip(processes, said, strict=True):
            process.join(timeout=300)
            process.kill()
            process.join()
            text = file.read_text(errors="replace") if file.exists() else ""
            print(f"--- {process.name} of {count} {target.__name__}, exit code {process.exitcode}:\n{text}")
    return [process.exitcode for process in processes]


def _ranked(rank: int, count: int, port: int, said: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    words = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(words, 1)
    os.dup2(words, 2)
    torch.set_num_threads(1)
    verify_here()
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target(*args)


KD = KnowledgeDistillation()
PAIRS = PairsConfig(count=6, steps=3, guidance=2.0)


def teacher_pairs(pipeline: Pipeline, folder: Path, *, key: str) -> PairSet:
    """Pairs of the stripes' classes, kept in `folder`."""
    loader, accelerator = Loader(Stripes(), seed=3), Accelerator(cpu=True)
    return pairs.teacher_pairs(
        folder / "pairs", pipeline, pipeline.denoiser(), PAIRS, loader=loader, key=key, accelerator=accelerator
    )
