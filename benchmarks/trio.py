"""A DMD2 trio with its stage as a run builds it, on a network with random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fastgen.config.lora import Base, LoRAConfig, Sharing
from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.data import Items, Loader, Source
from fastgen.engine.dtypes import QUANTISED
from fastgen.engine.feed import Feed
from fastgen.engine.memory import settle_recompute
from fastgen.engine.roles import build_roles
from fastgen.engine.sequences import part_sequences
from fastgen.engine.stage import Stage
from fastgen.models.calls import search_convolutions
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm
from fastgen.models.offload import swap_blocks
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.quantised import quantise
from fastgen.models.walk import Plan
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import even_grid, from_scheduler

from .networks import Size

KEPT = 64


@dataclass(frozen=True)
class Setting:
    """What is trained how.

    Args:
        sharing: full gives every role a network, lora an adapter of `rank` on the teacher's.
        one_pass: generated samples are judged in the call that teaches the fake score.
        every: with checkpointing, of so many blocks one is computed again.
        base: dtype of the network that roles share; auto is that of the precision.
        memory: low leaves the blocks of that network in main memory between their calls.
        fake_turns: of a cycle, after one turn of the generator.
        guidance: of the real score; 1 is one call of it, more are two.
        optimizer: name of that of every role.
        masters, gradients, ema_device, sequence_parallel: of `TrainConfig`; beside masters in bf16 the teacher is in it
            as well.
    """

    sharing: Sharing = "lora"
    rank: int = 64
    batch: int = 4
    gan: bool = False
    one_pass: bool = False
    checkpointing: bool | Literal["auto"] = True
    every: int = 1
    compile: bool | Literal["all"] = False
    graphs: bool = False
    precision: str = "bf16"
    base: Base | Literal["auto"] = "auto"
    memory: Literal["ample", "low"] = "ample"
    fake_turns: int = 4
    guidance: float = 8.0
    optimizer: str = "adamw"
    masters: str = "fp32"
    gradients: str = "fp32"
    ema_device: str = "auto"
    sequence_parallel: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the teacher's network, as a run loads it."""
        half = self.precision == "bf16" and (self.sharing == "lora" or self.masters != "fp32")
        return torch.bfloat16 if half else torch.float32

    @property
    def shared_in(self) -> Base:
        """Of the network that roles share."""
        if self.base != "auto":
            return self.base
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


class Teacher(Pipeline):
    """A network with random weights in place of a stock pipeline: told random rows, and its samples are its images."""

    def __init__(self, net: nn.Module, size: Size, dtype: torch.dtype) -> None:
        self.net, self.shape, self.kind, self.classes = net, size.shape, "prompt", range(0)
        self.reading = from_scheduler(DDIMScheduler(**size.scheduler))
        self.form = CallForm(sample=size.sample)
        self.pipe: Any = None
        self._rows = size.rows(KEPT, dtype)

    @property
    def network(self) -> nn.Module:
        return self.net

    @property
    def codec(self) -> Any:
        return self

    @staticmethod
    def encode(images: Tensor) -> Tensor:  # type: ignore[override]
        return images

    def condition(
        self, rows: int, *, labels: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """Rows of the kept ones; a prompt is the number of its row."""
        return self._rows.index(torch.tensor([int(prompt) if prompt.isdigit() else 0 for prompt in prompts or ()]))


@dataclass(frozen=True)
class Samples(Source):
    """Random samples of the network's shape, their numbers as prompts."""

    shape: tuple[int, ...]
    has_images = True
    num_classes = None

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(map(str, range(KEPT)))

    def check(self) -> None: ...

    def __len__(self) -> int:
        return KEPT

    def items(self, indices: Sequence[int]) -> Items:
        images = torch.randn((len(indices), *self.shape), generator=torch.Generator().manual_seed(indices[0]))
        return Items(images=images, prompts=tuple(map(str, indices)))


def config_of(setting: Setting) -> StageConfig:
    """The stage that is trained."""
    objective = DMD2(
        guidance=Fixed(setting.guidance),
        gan=GAN(joint=setting.one_pass, one_pass=setting.one_pass) if setting.gan else GAN(0.0),
        ratio=setting.fake_turns,
        rollout="one_step",
    )
    train = TrainConfig.model_validate(
        {
            "images": 10**9,
            "batch": setting.batch,
            "precision": setting.precision,
            "gradient_checkpointing": setting.every if setting.checkpointing is True else setting.checkpointing,
            "compile": setting.compile,
            "cuda_graphs": setting.graphs,
            "masters": setting.masters,
            "gradients": setting.gradients,
            "ema_device": setting.ema_device,
            "sequence_parallel": setting.sequence_parallel,
            "optim": {"name": setting.optimizer, "lr": 1e-6, "betas": (0.0, 0.999)},
        }
    )
    return StageConfig(name="benchmark", objective=objective, train=train)


def lora_of(setting: Setting) -> LoRAConfig:
    """The adapters of shared roles, and the dtype of the network below them."""
    return LoRAConfig(rank=setting.rank, base=setting.shared_in)


def teacher_on(size: Size, setting: Setting, device: torch.device) -> Teacher:
    """The teacher's network with random weights, or on the meta device without any."""
    return Teacher(size.built(device, setting.dtype), size, setting.dtype)


def stage_on(size: Size, setting: Setting, kind: type[Stage], accelerator: Accelerator) -> Stage:
    """The stage of a run with these settings, of the given kind."""
    config, teacher, base = config_of(setting), teacher_on(size, setting, accelerator.device), setting.shared_in
    search_convolutions(torch.Size(teacher.shape))
    if base in QUANTISED:
        teacher.net = quantise(teacher.net, base, accelerator.device)
    if setting.memory == "low":
        swap_blocks(teacher.net.to("cpu"), accelerator.device)
    roles = build_roles(
        teacher,
        config,
        plan=Plan([even_grid(1)]),
        weights={},
        seed=0,
        sharing=setting.sharing,
        lora=lora_of(setting),
        base=base,
    )
    feed = Feed(teacher, Loader(Samples(size.shape), seed=0), accelerator.device, config.objective.needs)
    part_sequences(roles, feed, config.objective, setting.sequence_parallel)
    stage = kind(config, roles, feed, accelerator)
    settle_recompute(stage)
    return stage
