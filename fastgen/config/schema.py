"""A run, typed. `configfile` reads it from YAML and dotted overrides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from ..data import SOURCE_KINDS, Mixture
from ..models.masters import Masters
from ..models.pipelines.rewards import REWARD_KINDS
from ..models.sharding import Sharding
from ..models.walk import Sampler
from ..objectives import OBJECTIVE_KINDS, roles_of
from ..plugins import Kinds
from ..process.retold import ProcessName
from ..user_file import short
from .discriminator import DiscriminatorConfig, check_judged
from .evaluate import EvaluateConfig
from .export import ExportConfig, ExportSetting
from .guards import GuardsConfig
from .optimizer import Fraction, OptimConfig, checked
from .origins import check_carried
from .pairs import PairsConfig
from .record import CheckpointsConfig, LogConfig, TimeoutsConfig
from .rewards import SEVERAL_REWARDS, check_rewarded
from .strict import Strict, named, one_or_several
from .teacher import TeacherConfig

Precision = Literal["fp32", "bf16", "fp16"]
Base = Literal["fp32", "bf16", "fp8", "int8", "nf4"]
Sharing = Literal["full", "lora", "scores"]
NAMED: tuple[tuple[Kinds[Any], str], ...] = (
    (OBJECTIVE_KINDS, "name"),
    (SOURCE_KINDS, "source"),
    (REWARD_KINDS, "name"),
)
"""What a mapping names the class of, and under which key."""


class StudentConfig(Strict):
    """What is exported.

    steps: step counts that the student serves; the first is the default of `sample`.
    sampler: renoise (predict x0, add fresh noise) or ode (deterministic).
    height, width: of its pictures in pixels; the pipeline's own default where not given.
    frames: of its videos, likewise.
    guidance: w that a student with guidance as an input is made for; others have none.
    shift: of a flow student's times towards the noise (SD3, arXiv:2403.03206, eq. 23); the teacher's own if not given.
        Where a pipeline in bf16 rounds its times, they are moved by up to 0.03 to times that it does not round.
    """

    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    sampler: Sampler = "renoise"
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    frames: PositiveInt | None = None
    guidance: Annotated[float, Field(ge=1, le=20)] | None = None
    shift: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _steps_are_declared_once(self) -> Self:
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps {list(self.steps)} names a count twice: declare each once")
        return self


class LoRAConfig(Strict):
    """Roles on one frozen network (`sharing: lora` or `scores`): each trains a low-rank adapter of its own.

    rank, alpha: the updates are alpha / rank times B A; alpha is the rank where it is not given.
    targets: ends of layer names or regular expressions; the attention and feed-forward layers where not given.
    norms: each role also has norm layers and biases of its own.
    keys: of the exported LoRA's files: diffusers, kohya (kohya-ss, ComfyUI; for Stable Diffusion, SDXL and Flux); all
        that are known for the network where not given.
    base: dtype of the frozen network; auto is bf16 where all stages have precision bf16, and fp32 otherwise. fp8 halves
        its memory and needs no other package; int8 and nf4 need bitsandbytes. All three are slower than bf16.
    """

    rank: PositiveInt = 64
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    norms: bool = False
    keys: Annotated[tuple[Literal["diffusers", "kohya"], ...], Field(min_length=1)] | None = None
    base: Base | Literal["auto"] = "auto"


class TrainConfig(Strict):
    """How a stage is trained.

    images: budget, counted in samples of the generator's turns over all processes.
    minutes: of training after which a stage ends before its budget; none where not given.
    batch: samples per update over all processes.
    micro_batch: samples per forward pass; the rest of the batch is accumulated.
    precision: what networks compute in; times, losses and averages stay in fp32.
    masters: what a trained network's weights are: fp32; split, the same numbers as bf16 weights that no call casts and
        16 bits beside each; bf16, which updates round up or down by chance. The latter two need precision bf16.
    gradients: of such bf16 weights, those of several micro-batches being added up.
    tf32: matrix products of fp32 numbers may be rounded to TF32, as PyTorch lets convolutions be.
    ema: decay per generator update; the average, in fp32, is what is exported.
    ema_device: auto keeps the average beside the weights, cpu in main memory, where it follows while training goes on.
    reuse: the turns of a cycle share one batch and its rollout.
    gradient_checkpointing: blocks computed again in the backward pass, for memory: all, each n-th, or few (auto).
    compile: the blocks that networks are stacked from are compiled by PyTorch; those alone that repeat, or all, for a
        first cycle of minutes.
    cuda_graphs: a network's call is one launch on CUDA devices, recorded when it comes again; for some more memory.
    sharding: none gives every process whole networks; full a slice of each, with its gradients, moments and average;
        host a slice over the processes of its host, so that only gradients travel between hosts.
    sequence_parallel: processes that share the tokens of each sample, for long videos; groups of them share the batch.
    optim: optimizer of every role.
    roles: mapping of single roles to what differs from `optim` for them.
    """

    images: PositiveInt
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: PositiveInt = 64
    micro_batch: PositiveInt | None = None
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


class StageConfig(Strict):
    """One objective, its budget and where its roles start from.

    name: of the stage in the log, checkpoints and report; the objective's where not given.
    objective: what is minimised.
    train: budget, batches and optimizers.
    carry: role -> what it starts from: teacher, an earlier stage, or generator, ema, fake_score of the one before.
    discriminator: what it reads, for objectives that have one.
    rewards: what samples are to score high in, for objectives that read rewards; of several each has a `weight`.
    judges: rewards that are only watched, so that what is gained at their expense shows in the log.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    objective: Annotated[Any, named(OBJECTIVE_KINDS, "name")]
    train: TrainConfig
    carry: dict[str, str] = Field(default_factory=dict)
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    rewards: Annotated[Any, SEVERAL_REWARDS] = None
    judges: Annotated[Any, SEVERAL_REWARDS] = None

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_objective(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and isinstance(raw.get("objective"), Mapping):
            return {"name": short(str(raw["objective"].get("name"))), **raw}
        return raw

    @model_validator(mode="after")
    def _trains_known_roles(self) -> Self:
        trained = roles_of(self.objective)
        for role in self.train.roles:
            if role not in trained:
                raise ValueError(
                    f"train.roles names {role!r}, but {self.name} trains {', '.join(trained)}; "
                    "remove it or choose an objective with that role"
                )
        return self

    @model_validator(mode="after")
    def _is_rewarded_and_judged_as_it_needs(self) -> Self:
        check_rewarded(self.name, self.objective.needs, self.rewards, self.judges)
        check_judged(self.name, self.objective, self.discriminator)
        return self


class Config(Strict):
    """A whole run.

    out: folder of checkpoints, log and pictures.
    export: folder of the exported pipeline, or a mapping of that as `path` and of a `dtype`.
    seed: of weights, noise and the order of the data.
    device: auto is cuda where there is one.
    cache: folder for the encoded prompts, which later runs find again; null keeps them in memory.
    teacher: the pipeline that is distilled.
    student: what is exported: step counts, sampler, size.
    init: whose weights the generator starts from: an exported student, a run, a checkpoint, a LoRA; or the teacher's.
    process: that the roles speak in training; flow and trig retarget networks of another process.
    attention: kernel of the denoisers; auto and native leave the choice to PyTorch.
    memory: low keeps in main memory what is not computed with: text encoders and autoencoder, moments of roles that a
        turn does not train, and the blocks of a network that all roles share. For small GPUs; slower.
    sharing: full gives every role a network of its own; lora puts all of them on the teacher's, see `lora`; scores
        puts the real and the fake score there, beside a generator of its own (SwiftBrush).
    lora: adapters of shared roles.
    data: images, labels or prompts to train on; of a list of sources each has a `weight` that it is drawn in.
    flip: images are mirrored at random.
    micro_conditioning: what SDXL and its like are told of with a real image: image, its own size and crop; target, what
        the pipeline's call tells at the size that is trained, as it does where no images are read.
    caption_dropout: share of the samples that are asked for by the empty prompt.
    workers: processes that decode images, of sources that are files; 0 leaves it to threads, which suffice where images
        are large or batches slow.
    pairs: teacher samples for objectives that regress them.
    stages: one after the other; the generator goes on from the one before.
    log: what is said while it trains.
    checkpoints: when the run can be resumed from.
    timeouts: how long what does not answer is waited for.
    evaluate: quality while it trains.
    guards: what is done where training goes wrong without breaking.
    """

    out: Path
    export: ExportSetting = ExportConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache: Path | None = Path("runs/cache")
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    init: Annotated[str, Field(min_length=1)] | None = None
    process: ProcessName = "native"
    attention: Literal["auto", "native", "flash", "cudnn", "xformers"] = "auto"
    memory: Literal["ample", "low"] = "ample"
    sharing: Sharing = "full"
    lora: LoRAConfig = LoRAConfig()
    data: Annotated[Any, one_or_several(SOURCE_KINDS, "source", Mixture)]
    flip: bool = False
    micro_conditioning: Literal["image", "target"] = "image"
    caption_dropout: Fraction = 0.0
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    pairs: PairsConfig = PairsConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    log: LogConfig = LogConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guards: GuardsConfig = GuardsConfig()

    @model_validator(mode="after")
    def _stages_have_their_own_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            check_carried(stage.name, stage.carry, names[:index])
        return self

    @property
    def swaps(self) -> bool:
        """Whether blocks of the network that all roles share stay in main memory between their calls."""
        return self.memory == "low" and self.sharing == "lora" and self.teacher.path is not None

    @property
    def exported(self) -> Path:
        """Where the exported pipeline goes."""
        return self.export.path or self.out / "student"

    @property
    def exported_lora(self) -> Path:
        """Where the LoRA of a shared network goes: beside the exported pipeline."""
        return self.exported.with_name(f"{self.exported.name}-lora")
