"""From a config to a verified student: teacher, training, export, report."""

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from ..config.schema import Config
from ..engine.distributed import alone, leave, meet
from ..engine.dtypes import AUTOCAST
from ..engine.run import Run, Trained
from ..errors import UserError
from ..models.calls import LARGE
from ..models.pipelines.attention import avoid_cudnn, check_attention
from ..models.pipelines.pipeline import Pipeline
from .checks import check_grids, check_needs, check_stages
from .monitor import yardstick
from .plan import recipe_of
from .preflight import check_device, check_output
from .rehearsal import rehearse_export, rehearse_pictures
from .release import check_release, release
from .student import Student
from .teacher import teacher_of


def distil(config: Config, *, recipes: Path, resume: bool = False) -> Path:
    """Carries a run out and returns the student's folder.

    Args:
        config: settings of the run.
        recipes: folder that `teacher.recipe` is relative to.
        resume: go on from the newest checkpoint.

    Raises:
        UserError: the config, the teacher, the data or the output folder cannot work; nothing on disk is lost.
    """
    folder = _distilled(config, recipes=recipes, resume=resume)
    leave()
    return folder


def _distilled(config: Config, *, recipes: Path, resume: bool) -> Path:
    check_stages(config)
    accelerator = accelerator_of(config)
    alone(lambda: check_output(config, resume=resume))
    config.data.check()
    computed = {AUTOCAST[stage.train.precision] or torch.float32 for stage in config.stages}
    for dtype in computed:
        check_attention(config.attention, device=accelerator.device, dtype=dtype)
    _ensure_teacher(config, recipes, accelerator)
    pipeline = teacher_of(config, accelerator.device)
    torch.backends.cudnn.benchmark = torch.Size(pipeline.shape).numel() < LARGE  # trials of large maps cost much memory
    check_needs(config, pipeline)
    check_release(config, pipeline)
    student = Student(config, pipeline, accelerator.device)
    check_grids(config, student.plan)
    _make(config.out)
    _encode(config, pipeline, accelerator)
    alone(lambda: rehearse_export(student))
    shown = rehearse_pictures(student, warn=accelerator.print)
    accelerator.init_trackers("fastgen")
    run = Run(
        config,
        pipeline,
        student=student.plan,
        accelerator=accelerator,
        preview=student.preview if shown else None,
        yardstick=yardstick(student, here=accelerator.is_main_process),
    )
    trained = run.train(resume=resume)
    for tracker in accelerator.trackers:
        tracker.finish()
    alone(lambda: _finish(student, trained))
    return config.exported


def _encode(config: Config, pipeline: Pipeline, accelerator: Accelerator) -> None:
    """The prompts' conditioning, in memory or in a cache that one process fills for those of its disk."""

    def encode() -> None:
        pipeline.encode(config.data.prompts or (), progress=accelerator.is_main_process)

    if config.cache is not None:
        alone(encode)
    encode()
    meet()


def _finish(student: Student, trained: Trained) -> None:
    release(student, trained)
    _measure(student, trained)


def _measure(student: Student, trained: Trained) -> None:
    """The digits' report: teacher and student side by side."""
    config, pipeline = student.config, student.pipeline
    if config.evaluate.protocol != "digits":
        return
    from eval.digits.report import Sampler, digits_report, save

    spec, teacher, few = config.evaluate, pipeline.denoiser(), len(student.plan.grids[0])
    doubled = 2 if spec.teacher_guidance != 1 else 1
    samplers = {
        f"teacher, {n} step{'s' * (n > 1)}": Sampler(
            partial(student.draw_teacher, teacher, steps=n, guidance=spec.teacher_guidance), n * doubled, steps=n
        )
        for n in (spec.teacher_steps, few)
    }
    for name, weights in trained.weights.items():
        samplers[f"student after {name}"] = Sampler(partial(student.draw, student.generator(weights)), few)
    report = digits_report(samplers, seed=config.seed)
    save(report, config.out / "report")
    print(report.table())
    print(f"picture: {config.out / 'report' / 'digits.png'}, page: {config.out / 'report' / 'report.html'}")


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run.

    Raises:
        UserError: the config asks for a device that is not there.
    """
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    check_device(config)
    avoid_cudnn()
    return Accelerator(cpu=cpu, log_with=list(config.log.trackers) or None, project_dir=config.out / "trackers")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror}; give a writable folder with out=...") from error


def _ensure_teacher(config: Config, recipes: Path, accelerator: Accelerator) -> None:
    """Trains the teacher by its recipe if its folder does not exist yet; every process takes part."""
    recipe = recipe_of(config, recipes)
    if recipe is None:
        return
    accelerator.print(f"no teacher in {config.teacher.path} yet: training it by {recipe.file}")
    resume = (recipe.config.out / "checkpoints").is_dir()
    _distilled(recipe.config, recipes=recipe.file.parent, resume=resume)
