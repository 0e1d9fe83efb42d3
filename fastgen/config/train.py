"""How a stage is trained: budget, batches, precision, and what its networks are spread over."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from ..models.masters import Masters
from ..models.sharding import Sharding
from .optimizer import Fraction, OptimConfig, checked
from .strict import Strict

Samples = Annotated[int, Field(gt=0, le=2**20)]
"""A count of samples that are computed for one update."""
Precision = Literal["fp32", "bf16", "fp16"]


class TrainConfig(Strict):
    """How a stage is trained.

    images: budget, counted in samples of the generator's turns over all processes.
    minutes: minutes of training after which the stage ends even if its budget is not used up; no limit if not
        given.
    batch: samples per update over all processes.
    micro_batch: samples per forward pass; the rest of the batch is accumulated.
    precision: dtype in which networks compute; times, losses and averages stay in fp32.
    masters: how the weights of trained networks are held: fp32; split, as bf16 weights that networks compute with,
        and 16 more bits each, together the same numbers; bf16 alone, which updates round up or down at random. The
        latter two need precision bf16.
    gradients: dtype of the gradients of such bf16 weights, in which those of several micro-batches are added up.
    tf32: let matrix products of fp32 numbers be rounded to TF32, as PyTorch lets convolutions.
    ema: decay of the weight average per generator update; the average, in fp32, is what is exported.
    ema_device: auto keeps the average beside the weights; cpu keeps it in main memory, where it is updated while
        training continues.
    reuse: the turns of a cycle share one batch and its rollout.
    gradient_checkpointing: recompute blocks in the backward pass to save memory: all (true), every n-th, or as few
        as needed (auto).
    compile: let PyTorch compile the blocks that networks are stacked from: those that repeat (true), or all of
        them, with what stands between a U-Net's where none is computed again, for a first cycle of minutes.
    cuda_graphs: record network calls on CUDA devices, so that each is one launch when it comes again; takes some
        more memory.
    sharding: none gives every process whole networks; full gives it a slice of each, with its gradients, moments
        and average; host slices over the processes of a host, so that only gradients travel between hosts.
    sequence_parallel: number of processes that share the tokens of each sample, for long videos; groups of so many
        share the batch.
    optim: optimizer of every role.
    roles: role -> settings that differ from `optim` for it.
    """

    images: PositiveInt
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: Samples = 64
    micro_batch: Samples | None = None
    precision: Precision = "fp32"
    masters: Masters = "fp32"
    gradients: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = False
    ema: Fraction | None = 0.99
    ema_device: Literal["auto", "cpu"] = "auto"
    reuse: bool = False
    gradient_checkpointing: bool | PositiveInt | Literal["auto"] = False
    compile: bool | Literal["all"] = False
    cuda_graphs: bool = True
    sharding: Sharding = "none"
    sequence_parallel: PositiveInt = 1
    optim: OptimConfig = OptimConfig()
    roles: dict[str, Annotated[dict[str, Any], AfterValidator(checked)]] = Field(default_factory=dict)

    @property
    def graphed(self) -> bool:
        """Whether calls may be recorded as graphs, in which processes cannot exchange anything."""
        return self.cuda_graphs and self.sharding == "none" and self.sequence_parallel == 1

    @property
    def recomputed(self) -> int:
        """Every so-many-th block is computed again in the backward pass; 0 where none is, or none yet."""
        return 0 if self.gradient_checkpointing == "auto" else int(self.gradient_checkpointing)

    def optim_of(self, role: str) -> OptimConfig:
        """The optimizer settings of a role."""
        return OptimConfig.model_validate({**self.optim.model_dump(), **self.roles.get(role, {})})

    @model_validator(mode="after")
    def _batch_is_divisible(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        return self

    @model_validator(mode="after")
    def _schedule_ends(self) -> Self:
        schedules = [self.optim.schedule, *(settings.get("schedule", "constant") for settings in self.roles.values())]
        if self.minutes is not None and set(schedules) != {"constant"}:
            raise ValueError(
                f"minutes is {self.minutes:g}, but a linear or cosine schedule reaches zero after `images`, at a time "
                "unknown before: use schedule constant, or leave minutes out"
            )
        return self
