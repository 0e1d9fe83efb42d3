"""From a config to a verified student: teacher, training, export, report."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from .config import Config
from .data import Loader
from .engine.loop import Stage
from .engine.run import Run, Trained
from .errors import UserError
from .export.export import export
from .export.scheduler import few_step_scheduler
from .export.verify import verify
from .models.conditioning import Conditioning
from .models.contract import Denoiser
from .models.create import create
from .models.denoiser import NetworkDenoiser
from .models.pipeline import Pipeline
from .notes import Notes
from .plan import recipe_of
from .sampling.pictures import grid
from .sampling.sampler import ode, renoise, seeded_noise

PREVIEW_IMAGES = 20
AT_ONCE = 256


def distil(config: Config, *, recipes: Path, resume: bool = False) -> Path:
    """Carries a run out and returns the student's folder.

    Args:
        config: of the run.
        recipes: folder that `teacher.recipe` is relative to.
        resume: go on from the newest checkpoint.

    Raises:
        UserError: the config, the teacher, the data or the output folder cannot work; nothing on disk is lost.
    """
    folder = _distilled(config, recipes=recipes, resume=resume)
    PartialState().destroy_process_group()
    return folder


def _distilled(config: Config, *, recipes: Path, resume: bool) -> Path:
    accelerator = _accelerator(config)
    _check_output(config, resume=resume)
    config.data.check()
    _ensure_teacher(config, recipes, accelerator)
    accelerator.wait_for_everyone()
    pipeline = _teacher(config, accelerator.device)
    student = Student(config, pipeline, accelerator.device)
    _make(config.out)
    accelerator.init_trackers("fastgen")
    run = Run(config, pipeline, grids=student.grids, accelerator=accelerator, preview=student.preview)
    trained = run.train(resume=resume)
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        student.export(trained)
        student.measure(trained)
    return student.folder


class Student:
    """What a run makes: the scheduler it will be sampled with, its grids, pictures, export and figures."""

    def __init__(self, config: Config, pipeline: Pipeline, device: torch.device) -> None:
        self.config, self.pipeline, self.device = config, pipeline, device
        steps, sampler = config.student.steps, config.student.sampler
        self.scheduler = few_step_scheduler(pipeline.pipe.scheduler, steps, sampler=sampler)
        stock = Pipeline(
            pipeline.student(pipeline.network.state_dict(), self.scheduler),
            num_classes=len(pipeline.classes) or None,
            null_label=pipeline.null_label,
        )
        self.grids = [stock.grid(n) for n in steps]
        self.folder = config.exported

    def preview(self, stage: Stage, name: str) -> None:
        """A grid of the generator's samples at the first declared step count, always of the same seeds."""
        x0 = self.sample(stage.roles.generator, self._examples(PREVIEW_IMAGES), seeds=range(PREVIEW_IMAGES))
        images = self.pipeline.codec.decode(x0)
        folder = self.config.out / "previews"
        folder.mkdir(exist_ok=True)
        grid(images / 2 + 0.5, columns=10).save(folder / f"{name}.png")

    def sample(self, model: Denoiser, cond: Conditioning, *, seeds: range) -> Tensor:
        """Samples at the first declared step count, as the exported pipeline draws them."""
        times = self.grids[0].tolist()
        noise = seeded_noise(seeds, self.pipeline.shape, self.device)
        if self.config.student.sampler == "renoise":
            return renoise(model, noise, cond, times)
        return ode(model, noise(), cond, times)

    def export(self, trained: Trained) -> None:
        """The last stage's generator as a stock folder, checked against the sampler of training."""
        last = self.config.stages[-1]
        pipe = self.pipeline.student(trained.weights[last.name], self.scheduler)
        notes = Notes(
            steps=self.config.student.steps,
            num_classes=len(self.pipeline.classes) or None,
            null_label=self.pipeline.null_label,
            objective=last.name,
            teacher=_publishable(self.config.teacher.path),
        )
        export(pipe, notes, self.folder)
        sampler, steps = self.config.student.sampler, self.config.student.steps
        for agreement in verify(self.folder, steps, sampler=sampler, device=self.device):
            print(f"verified {self.folder} at {agreement.steps} steps: difference {agreement.difference:.1e}")

    def measure(self, trained: Trained) -> None:
        """The protocol that the config asks for: teacher and student side by side."""
        if self.config.evaluate.protocol == "none":
            return
        from eval.digits_report import Sampler, digits_report, save

        spec, teacher = self.config.evaluate, self.pipeline.denoiser()
        guidance, doubled = spec.teacher_guidance, 2 if spec.teacher_guidance != 1 else 1
        few = len(self.grids[0])
        samplers = {
            f"teacher, {n} step{'s' * (n > 1)}": Sampler(partial(self._teacher_draw, teacher, n, guidance), n * doubled)
            for n in (spec.teacher_steps, few)
        }
        for name, weights in trained.weights.items():
            net = self.pipeline.denoiser()
            net.net.load_state_dict(weights)
            samplers[f"student after {name}"] = Sampler(partial(self._student_draw, net), few)
        report = digits_report(samplers, seed=self.config.seed)
        save(report, self.config.out / "report")
        print(report.table())
        print(f"picture: {self.config.out / 'report' / 'digits.png'}")

    def _student_draw(self, model: NetworkDenoiser, labels: Tensor) -> Tensor:
        parts = _ranges(len(labels))
        return torch.cat([self.sample(model, self._labelled(labels[p.start : p.stop]), seeds=p) for p in parts])

    def _teacher_draw(self, model: NetworkDenoiser, steps: int, guidance: float, labels: Tensor) -> Tensor:
        times = self.pipeline.teacher_grid(steps).tolist()
        drawn = []
        for p in _ranges(len(labels)):
            noise = seeded_noise(p, self.pipeline.shape, self.device)()
            drawn.append(ode(model, noise, self._labelled(labels[p.start : p.stop]), times, guidance=guidance))
        return torch.cat(drawn)

    def _labelled(self, labels: Tensor) -> Conditioning:
        return self.pipeline.condition(len(labels), labels=labels).to(self.device)

    def _examples(self, count: int) -> Conditioning:
        if self.pipeline.kind == "label":
            return self._labelled(torch.arange(count) % len(self.pipeline.classes))
        items = Loader(self.config.data, seed=0, shuffle=False).take(0, count)
        return self.pipeline.condition(count, prompts=items.prompts).to(self.device)


def _publishable(teacher: str | None) -> str | None:
    """A hub id as it is, a folder without the path of this machine."""
    return Path(teacher).name if teacher is not None and Path(teacher).exists() else teacher


def _ranges(count: int) -> list[range]:
    return [range(i, min(i + AT_ONCE, count)) for i in range(0, count, AT_ONCE)]


def _accelerator(config: Config) -> Accelerator:
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {config.device}, but torch sees no CUDA device: set device=cpu, or auto")
    if "wandb" in config.log.trackers and find_spec("wandb") is None:
        raise UserError("log.trackers names wandb, which is not installed: pip install 'fastgen[wandb]', or remove it")
    torch.backends.cudnn.benchmark = True
    return Accelerator(cpu=cpu, log_with=list(config.log.trackers) or None, project_dir=config.out / "trackers")


def _check_output(config: Config, *, resume: bool) -> None:
    out, exported = config.out, config.exported
    if out.exists() and not out.is_dir():
        raise UserError(f"out is {out}, which is a file: give a folder")
    if not resume and (out / "checkpoints").is_dir():
        raise UserError(
            f"{out} already holds a run: go on with it by --resume, or give another folder with out=...; nothing there "
            "was touched"
        )
    kept = [out, Path(config.teacher.path)] if config.teacher.path else [out]
    for path in kept:
        if exported.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"the export would replace {path}: give a folder of its own with export=...")
    if exported.exists() and not exported.is_dir():
        raise UserError(f"the export goes to {exported}, which is a file: give a folder with export=...")
    ours = resume and (exported / Notes.FILE).is_file()
    if not ours and exported.is_dir() and any(exported.iterdir()):
        raise UserError(
            f"the export goes to {exported}, which already holds files: give another folder with export=..., or move "
            "them; nothing there was touched"
        )


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


def _teacher(config: Config, device: torch.device) -> Pipeline:
    spec = config.teacher
    if spec.new is not None:
        pipe = create(spec.new.pipeline, spec.new.parts, seed=config.seed).to(device)
        return Pipeline(pipe, num_classes=spec.num_classes, null_label=spec.null_label)
    assert spec.path is not None
    return Pipeline.load(spec.path, device=device, num_classes=spec.num_classes, null_label=spec.null_label)
