"""From a config to a verified student: teacher, training, export, report."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from ..config.schema import Config
from ..disk import check_writable
from ..engine.distributed import disconnect, on_first
from ..engine.dtypes import AUTOCAST
from ..engine.latents import recall
from ..engine.materials import Material
from ..engine.run import Run, Trained
from ..engine.splitting import micro_batches
from ..errors import VerificationError, say, warn
from ..lock import held
from ..models.calls import search_convolutions
from ..models.pipelines.attention import avoid_cudnn, check_attention
from ..models.pipelines.loading import answer_within
from ..models.pipelines.repeats import said_once
from ..peers import quiet_nccl, together
from .account import closing, header, in_columns, now
from .checks import check_needs, check_stages
from .exhausted import naming_remedies
from .grids import check_grids
from .initial import initial
from .plan import recipe_of
from .preflight import check_device, check_start
from .previews import Gallery
from .prompts import encode
from .rehearsal import rehearse_export, rehearse_pictures
from .release import check_release, release
from .several import each_student
from .student import Student
from .teacher import teacher_of

if TYPE_CHECKING:
    from .monitor import Monitor


def distil(
    config: Config,
    *,
    recipes: Path,
    resume: bool = False,
    allow_changed: Collection[Material] = (),
    take_over: bool = False,
) -> Path:
    """Carries a run out, or one for each of several students, and returns the folder of what is exported.

    Args:
        config: settings of the run.
        recipes: folder that `teacher.recipe` is relative to.
        resume: go on from the newest checkpoint.
        allow_changed: what may have other contents than when it was written.
        take_over: a run on another host that left the folder locked is known to be over.

    Raises:
        UserError: the config, the teacher, the data or the output folder cannot work, or another run writes there;
            nothing on disk is lost.
    """
    answer_within(config.timeouts.hub)
    accelerator = accelerator_of(config)  # connects the processes
    with together(config.timeouts.process), said_once():
        train = partial(_distilled, recipes=recipes, allow_changed=allow_changed, take_over=take_over)
        if config.students is None:
            train(config, resume=resume)
        else:
            _ensure_teacher(config, recipes, accelerator, take_over=take_over)
            each_student(config, train, resume=resume)
        disconnect()
    return config.exported


@dataclass(frozen=True)
class Ready:
    """A run that may train."""

    student: Student
    run: Run
    monitor: "Monitor | None"


def _distilled(
    config: Config, *, recipes: Path, resume: bool, take_over: bool, allow_changed: Collection[Material] = ()
) -> None:
    with ready(config, recipes=recipes, resume=resume, take_over=take_over) as made:
        accelerator, log = made.run.accelerator, made.run.log
        about = header(config, made.student.pipeline, accelerator)
        log.about = {"header": about, "started": now(), "finished": None}
        log.say(in_columns(about))
        with naming_remedies(config, accelerator.device, recipes=recipes):
            trained = made.run.train(resume=resume, allow_changed=allow_changed)
        for tracker in accelerator.trackers:
            tracker.finish()
        on_first(lambda: _finish(made.student, trained, made.monitor))
        left = closing(config)
        log.tell_about({"finished": now(), "closing": left.lines, "next": left.commands})
        log.say(f"done\n{left}")


@contextmanager
def ready(config: Config, *, recipes: Path, resume: bool = False, take_over: bool = False) -> Iterator[Ready]:
    """Within, the folders of a run are its own, and all is done and checked that comes before training.

    Args:
        config, recipes, resume, take_over: as of `distil`.

    Raises:
        UserError: as by `distil`.
    """
    recall(config)
    check_stages(config)
    accelerator = accelerator_of(config)
    for stage in config.stages:
        micro_batches(stage.train, accelerator.num_processes)  # refuses what they cannot share
    with ExitStack() as stack:
        on_first(lambda: check_writable(config.out, "out"))
        on_first(lambda: stack.enter_context(held(_written(config), take_over=take_over)))
        on_first(lambda: check_start(config, recipes=recipes, resume=resume))
        config.data.check()
        for stage in config.stages:
            dtype = AUTOCAST[stage.train.precision] or torch.float32
            check_attention(config.attention, device=accelerator.device, dtype=dtype)
        _ensure_teacher(config, recipes, accelerator, take_over=take_over)
        yield _made(config, accelerator)


def _written(config: Config) -> dict[Path, Path]:
    """The folders that a run alone may write, and where each is locked: what is exported is replaced as a whole."""
    out, exported = config.out.resolve(), config.exported.resolve()
    beside = {} if exported.is_relative_to(out) else {exported: exported.with_name(f".{exported.name}.lock")}
    return {out: out / ".lock", **beside}


def _made(config: Config, accelerator: Accelerator) -> Ready:
    """The run with its teacher, once what could fail only at its end was rehearsed."""
    pipeline = teacher_of(config, accelerator.device)
    search_convolutions(torch.Size(pipeline.shape))
    check_needs(config, pipeline)
    check_release(config, pipeline)
    student = Student(config, pipeline, accelerator.device)
    check_grids(config, student.plan, pipeline.reading.process)
    encode(config, pipeline, accelerator)
    on_first(lambda: rehearse_export(student))
    shown = rehearse_pictures(student, warn=warn if accelerator.is_main_process else _silent)
    gallery = Gallery(student) if shown and config.log.previews else None
    if gallery is not None and config.teacher.path is not None:
        on_first(gallery.teacher)
    monitor = _monitor(student, here=accelerator.is_main_process)
    run = Run(
        config,
        pipeline,
        plan=student.plan,
        accelerator=accelerator,
        preview=gallery,
        yardstick=monitor.yardstick if monitor else None,
        begin=partial(initial, student),
    )
    return Ready(student, run, monitor)


def _finish(student: Student, trained: Trained, monitor: "Monitor | None") -> None:
    failure: VerificationError | None = None
    try:
        release(student, trained)
    except VerificationError as error:  # all is written, and the report is due all the same
        failure = error
    if monitor is not None:
        monitor.report(trained)
    if failure is not None:
        raise failure


def _monitor(student: Student, *, here: bool) -> "Monitor | None":
    """The run's monitor, None where nothing is measured: only then are `eval`, scikit-learn and all imported."""
    if student.config.evaluate.protocol == "none":
        return None
    from .monitor import monitor

    return monitor(student, here=here)


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run.

    Raises:
        UserError: the config asks for a device that is not there.
    """
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    check_device(config)
    avoid_cudnn()
    quiet_nccl()
    return Accelerator(cpu=cpu, log_with=list(config.log.trackers) or None, project_dir=config.out / "trackers")


def _silent(message: str) -> None:
    """Drop a message that another process already prints."""


def _ensure_teacher(config: Config, recipes: Path, accelerator: Accelerator, *, take_over: bool) -> None:
    """Trains the teacher by its recipe if its folder does not exist yet; every process takes part."""
    recipe = recipe_of(config, recipes)
    if recipe is None:
        return
    if accelerator.is_main_process:
        say(f"no teacher in {config.teacher.path} yet: training it by {recipe.file}")
    resume = (recipe.config.out / "checkpoints").is_dir()
    _distilled(recipe.config, recipes=recipe.file.parent, resume=resume, take_over=take_over)
