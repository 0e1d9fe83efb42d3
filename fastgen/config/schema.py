"""The settings of a run, with their types; `yaml_file` reads them from YAML and dotted overrides."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..data import SOURCE_KINDS, Mixture, Selection
from ..data.texts import Some
from ..models.pipelines.rewards import REWARD_KINDS
from ..objectives import OBJECTIVE_KINDS, roles_of
from ..plugins import Kinds
from ..process.retold import ProcessName
from ..user_file import short
from .discriminator import DiscriminatorConfig, check_judged
from .evaluate import EvaluateConfig
from .export import ExportConfig, ExportSetting
from .guards import GuardsConfig
from .lora import LoRAConfig, Sharing
from .optimizer import Fraction
from .origins import check_carried
from .pairs import PairsConfig
from .record import CheckpointsConfig, LogConfig, TimeoutsConfig
from .rewards import SEVERAL_REWARDS, check_rewarded
from .several import StudentsSetting
from .strict import Strict, named, one_or_several
from .student import StudentConfig
from .teacher import TeacherConfig
from .train import TrainConfig

NAMED: tuple[tuple[Kinds[Any], str], ...] = (
    (OBJECTIVE_KINDS, "name"),
    (SOURCE_KINDS, "source"),
    (REWARD_KINDS, "name"),
)
"""What a mapping names the class of, and under which key."""
OF_ONE_STAGE = ("objective", "carry", "discriminator", "rewards", "judges")
"""Settings of a stage that may stand at the top where there is one."""


class StageConfig(Strict):
    """One objective, its budget and where its roles start from.

    name: name of the stage in the log, checkpoints and report; the objective's if not given.
    objective: what is minimised.
    train: budget, batches and optimizers.
    carry: role -> what it starts from: teacher, an earlier stage, or generator, ema, fake_score of the one before.
    discriminator: what the discriminator reads, for objectives that have one.
    rewards: what samples should score high in, for objectives that read rewards; if there are several, each has a
        `weight`.
    judges: rewards that are only watched, so that the log shows what is gained at their expense.
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
        if not isinstance(raw, Mapping) or "objective" not in raw:
            return raw
        objective = raw["objective"]
        named = objective.get("name") if isinstance(objective, Mapping) else None  # which is refused for itself
        return {"name": re.sub(r"^[.-]|[^\w.-]", "_", short(str(named))) or "_", **raw}

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
    export: where the exported pipeline goes: a folder, or a mapping with `path` and `dtype`.
    seed: seed of weights, noise and the order of the data.
    device: auto takes cuda if there is one.
    cache: folder for encoded prompts, which later runs find again; null keeps them in memory.
    teacher: the pipeline that is distilled.
    student: what is exported: step counts, sampler, size.
    init: what the generator starts from: an exported student, a run, a checkpoint or a LoRA; the teacher if not
        given.
    process: process in which the roles are trained; flow and trig convert networks of another process.
    attention: kernel of the denoisers; auto and native leave the choice to PyTorch.
    memory: low is for small GPUs, and slower: it keeps in main memory what is not being computed with, which is
        text encoders and autoencoder, moments of roles that a turn does not train, and the blocks of a network that
        all roles share.
    sharing: full gives every role a network of its own; lora puts all of them on the teacher's, see `lora`; scores
        puts the real and the fake score there, beside a generator of its own (SwiftBrush).
    lora: adapters of shared roles.
    data: images, labels or prompts to train on; in a list of sources, each has a `weight` for how often it is
        drawn.
    only: items of the data that are trained on, those of some `classes`; all if not given.
    students: one student for each part of the conditions (MSD): how many, for classes in their order or for prompts
        by their text embeddings; or the lists of classes. `train` is the budget of each; one student for everything
        if not given.
    flip: mirror images at random.
    micro_conditioning: size and crop that SDXL and its like are given with a real image: image gives the image's
        own; target gives what the pipeline's call gives at the trained size, as always where no images are read.
    caption_dropout: share of the samples whose prompt is replaced by the empty one.
    workers: processes that decode images of sources that are files; 0 decodes in threads, which suffice where
        images are large or batches slow.
    pairs: teacher samples for objectives that regress them.
    stages: stages, one after the other; each continues with the generator of the one before.
    log: what is logged during training.
    checkpoints: when checkpoints are written, from which a run can be resumed.
    timeouts: how long to wait for what does not answer.
    evaluate: measurements of quality during training.
    guards: what to do where training goes wrong without breaking off.
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
    only: Selection | None = None
    students: StudentsSetting = None
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

    @model_validator(mode="after")
    def _is_divided_once(self) -> Self:
        if self.only is not None and self.students is not None:
            raise ValueError("`students` divides all of the data among them: leave `only` out")
        if self.evaluate.protocol == "digits" and (self.only or self.students):
            raise ValueError(
                "evaluate.protocol is digits, which compares with digits of all classes, but a run has only some: set "
                "evaluate.protocol=none, and measure the students together by `fastgen eval`"
            )
        return self

    @cached_property
    def chosen(self) -> NDArray[np.intp] | None:
        """The numbers of the items that are trained on; None where all are."""
        return None if self.only is None else self.only.numbers(self.data)

    @property
    def prompts(self) -> Sequence[str] | None:
        """Those of the items that are trained on; None where they have none."""
        found = self.data.prompts
        return found if found is None or self.chosen is None else Some(found, self.chosen)

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
