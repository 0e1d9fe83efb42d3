"""The steps of a distillation, for programs that take them one by one: what `fastgen.NAME` shows of this room."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..config.schema import Config
from ..config.yaml_file import load
from ..engine.materials import Material
from ..engine.quality import left_by, plain
from ..engine.run import Run, Trained
from ..engine.stage import Stage
from ..export.rebuild import exports, verify_folder, verify_lora
from ..export.verify import Agreement
from ..models.pipelines.folders import is_lora
from ..models.pipelines.pipeline import Pipeline
from ..models.roles import Roles, taken
from ..objectives import Batch
from ..seeds import stream
from .distil import accelerator_of
from .distil import distil as carry_out
from .initial import initial
from .release import release
from .student import Student
from .teacher import teacher_of

ConfigLike = Config | str | Path | Mapping[str, Any]
"""A config, or what one is read from: a YAML file, or a mapping of the same form."""


def distil(
    config: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    allow_changed: Collection[Material] = (),
    take_over: bool = False,
) -> Path:
    """A whole run: teacher, training, export, verification, report.

    Args:
        config: settings of the run; a teacher's recipe lies beside its file.
        overrides: settings to change, such as "train.batch=64".
        resume: go on from the newest checkpoint.
        allow_changed: what may have other contents than when it was written: teacher, data or pairs.
        take_over: a run on another host that left the folder locked is known to be over.

    Returns:
        The student's folder.

    Raises:
        UserError: the config, the teacher, the data or the output folder cannot work; nothing on disk is lost.
    """
    recipes = Path(config).parent if isinstance(config, str | Path) else Path()
    known = _read(config, overrides)
    return carry_out(known, recipes=recipes, resume=resume, allow_changed=allow_changed, take_over=take_over)


def load_teacher(teacher: ConfigLike, *, device: str | torch.device = "auto") -> Pipeline:
    """The pipeline that a config distils, seen through a probe.

    Args:
        teacher: a config; or the folder or hub id of a pipeline alone.
        device: "auto" is the config's, and cuda where there is one for a pipeline alone.

    Raises:
        UserError: it cannot be loaded, or is called otherwise than the probe reads it.
    """
    if isinstance(teacher, str | Path) and Path(teacher).suffix not in (".yaml", ".yml"):
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return Pipeline.load(str(teacher), device=torch.device(automatic if device == "auto" else device))
    config = _read(teacher)
    place = accelerator_of(config).device if device == "auto" else torch.device(device)
    return teacher_of(config, place)


def build_roles(student: Student, stage: int = 0) -> Roles:
    """The roles of a stage of a student's config, each starting from the teacher, or the generator from `init`."""
    run = _run(student)
    return run.roles(student.config.stages[stage], run.begin(None))


def build_stage(student: Student, stage: int = 0, *, after: Stage | None = None) -> Stage:
    """A stage of a student's config, to be trained by its `cycle()` until it is `done`.

    Args:
        stage: number of the stage.
        after: the stage before, whose generator goes on; None starts from the teacher, or from `init`. What still
            earlier stages left is not there.
    """
    run, carried = _run(student), student.config.stages[stage].carry.values()
    return run.stage(stage, left_by(after, asked=carried) if after else run.begin(None))


def batches(student: Student, stage: int = 0) -> Iterator[Batch]:
    """Batches of a stage without end, each with random streams of its place, for a loop of one's own.

    They have `train.micro_batch` samples, or `train.batch`.
    """
    run, config = _run(student), student.config.stages[stage]
    feed, size, seed = run.feed(config), config.train.micro_batch or config.train.batch, student.config.seed
    for number in count():
        rng = stream(student.device, seed, stage, number)
        shared_rng = stream(torch.device("cpu"), seed, stage, number, "shared")
        batch = feed.batch(number * size, size, rng=rng, shared_rng=shared_rng)
        batch.images = number * size
        yield batch


def export_student(student: Student, trained: Stage | Roles) -> Path:
    """Writes the generator as a stock pipeline, and as a LoRA where it is one, and verifies both.

    Args:
        trained: the last stage, whose averaged weights are taken where it keeps an average; or roles of the last stage.

    Returns:
        The student's folder.

    Raises:
        UserError: weights are not finite, or an export does not sample as the student was trained.
    """
    last = student.config.stages[-1]
    if isinstance(trained, Stage):
        left = left_by(trained)
        weights = plain(trained.roles, left.get("ema", left["generator"]), trained.feed)
    else:
        weights = plain(trained, taken(trained.network("generator")), _run(student).feed(last))
    release(student, Trained({last.name: weights}))
    return student.config.exported


def verify(folder: str | Path, *, base: str | None = None, device: str = "auto") -> list[Agreement]:
    """Holds an export against what it was trained for: a process that knows only Diffusers against our sampler.

    Args:
        folder: folder of a whole pipeline, of several students, or of a LoRA.
        base: what a LoRA lies on; its notes' teacher where not given.
        device: device to sample on; "auto" is a GPU where there is one. A GPU without room for the whole pipeline in
            float32 has a part of its weights at a time.

    Returns:
        Of each step count, the largest difference over the largest value.

    Raises:
        UserError: no export, or one that does not sample as it was trained.
    """
    found = []
    for place in exports(Path(folder)):
        found += verify_lora(place, base, device=device) if is_lora(place) else verify_folder(place, device=device)
    return found


def _read(config: ConfigLike, overrides: Sequence[str] = ()) -> Config:
    return config if isinstance(config, Config) else load(config, overrides)


def _run(student: Student) -> Run:
    accelerator = accelerator_of(student.config)
    begin, plan = partial(initial, student), student.plan
    return Run(student.config, student.pipeline, plan=plan, accelerator=accelerator, preview=None, begin=begin)
