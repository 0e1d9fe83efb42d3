"""A trained generator for everyone: a whole pipeline, a LoRA where it is one, and the proof that both sample."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Config
from ..engine.dtypes import teacher_dtype
from ..engine.run import Trained
from ..errors import say
from ..export.adapter import Adapter
from ..export.card import licence_of
from ..export.export import export
from ..export.fidelity import check_sound, saved_as
from ..export.frozen import Frozen, frozen_parts, touched
from ..export.kohya import check_kohya
from ..export.lora import export_lora, has_loader, known_keys
from ..export.rebuild import calls_for, conditions_for
from ..export.scheduler_export import SchedulerExport
from ..export.unguided import unguided
from ..export.verify import Export, Ours, verify
from ..models.casting import cast, dtype_of
from ..models.merging import lora_layers, low_rank_updates
from ..models.pipelines.arguments import call_arguments
from ..models.pipelines.components import denoisers_of, parts_of
from ..models.pipelines.loading import load, locate, variant_of
from ..models.pipelines.notes import Notes
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stacked import recorded, written
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.teacher import load_teacher
from ..models.targets import find_targets
from .student import Student

COPIES = 3  # of the pipeline in fp32 while an export is verified: ours, the isolated process's, the network


def release(student: Student, trained: Trained) -> None:
    """Exports the last stage's generator and verifies everything that was written.

    Raises:
        UserError: weights are not finite or became zero, and nothing was written; or an export does not sample
            as the student was trained, and stays on disk for inspection.
    """
    config, pipeline = student.config, student.pipeline
    weights = trained.weights[config.stages[-1].name]
    network = student.network(weights).to("cpu")
    updates = check_sound(network, _updates(student, weights, network))
    saved = saved_as(network, updates, half=teacher_dtype(config), choice=config.export.dtype)
    if notice := saved.notice():
        say(notice)
    pipe = pipeline.student(saved.network, student.schedules[0].scheduler)
    silent = unguided(pipe)
    notes = notes_for(student, guidance=1.0 if silent is pipe else None)
    export(silent, notes, config.exported, student.schedules, frozen=_frozen(student))
    judge = Judge(student, _roomy(student))
    rounded = None if saved.exact else cast(saved.network, torch.float32)
    for schedule in student.schedules:
        place = config.exported / schedule.folder
        judge(Export(str(place)), schedule, load(place, device=judge.device), network, notes, rounded=rounded)
    if makes_lora(config, pipeline):
        _release_lora(student, weights, network, judge)


def makes_lora(config: Config, pipeline: Pipeline) -> bool:
    """Whether the student is also exported as a LoRA: plain Diffusers can load it, and onto something."""
    trained = config.sharing == "lora" and not config.lora.norms
    return trained and config.teacher.path is not None and has_loader(pipeline.pipe)


def check_release(config: Config, pipeline: Pipeline) -> None:
    """Raises UserError before anything is trained where the LoRA could not be written as the config asks."""
    if "kohya" in (config.lora.keys or ()) and makes_lora(config, pipeline):
        check_kohya(pipeline.network, find_targets(pipeline.network, config.lora.targets))


@dataclass(frozen=True)
class Judge:
    """Holds what was written against the student as it was trained."""

    student: Student
    device: str

    def __call__(
        self,
        written: Export,
        schedule: SchedulerExport,
        pipe: StockPipeline,
        network: nn.Module,
        notes: Notes,
        *,
        rounded: nn.Module | None = None,
    ) -> None:
        """Verifies one export and says so.

        Args:
            pipe: pipeline as others load it, for what it tells its denoiser.
            network: the trained one, float32.
            rounded: the same as its file holds it, where that is not exactly so.
        """
        teacher, saved = self.student.pipeline, (rounded or network).to(self.device)
        pipe.register_modules(**parts_of(pipe, saved))
        asked = Pipeline(pipe, num_classes=notes.num_classes, null_label=teacher.null_label, size=teacher.size)
        calls = calls_for(asked, call_arguments(pipe, notes))
        cond = conditions_for(asked).to(self.device)
        ours = Ours(teacher.speaking(saved), cond, calls, self.student.config.student.sampler, self.student.stops)
        if rounded is not None:
            ours = replace(ours, trained=teacher.speaking(network.to(self.device)))
        for agreement in verify(written, schedule, ours, device=self.device):
            what = written.loras[-1].folder if written.loras else written.pipeline
            far = "" if agreement.rounding is None else f", {agreement.rounding:.1e} from the weights before rounding"
            say(f"verified {what} at {agreement.steps} steps: difference {agreement.difference:.1e}{far}")


def _release_lora(student: Student, weights: Mapping[str, Tensor], network: nn.Module, judge: Judge) -> None:
    config, source = student.config, student.config.teacher.source
    stacked = [recorded(lora)[0] for lora in source.loras]
    adapter = Adapter(*lora_layers(weights, alpha=config.lora.alpha))
    notes = notes_for(student, guidance=1.0)
    folder, pipe = config.exported_lora, student.pipeline.pipe
    keys = config.lora.keys or known_keys(pipe, adapter.layers)
    export_lora(pipe, adapter, notes, folder, student.schedules, keys=keys)
    base = locate(source.path, variant=source.variant, revision=source.revision)
    if not base.is_dir():
        say(f"{folder} was not verified: its base is the single file {base.name}, which from_pretrained cannot load")
        return
    for schedule in student.schedules:
        loras = (*stacked, *written(pipe, str(folder), keys[0]))
        scheduler = str(folder / schedule.folder / "scheduler")
        exported = Export(str(base), loras, scheduler, variant_of(base, source.variant))
        judge(exported, schedule, load_teacher(replace(source, dtype="fp32"), device=judge.device), network, notes)


def _updates(student: Student, weights: Mapping[str, Tensor], network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(parameter, what training added to the teacher's), one after the other."""
    if student.config.sharing == "lora":
        yield from low_rank_updates(weights, alpha=student.config.lora.alpha)
    before = dict(student.pipeline.network.named_parameters())
    for name, parameter in network.named_parameters():
        if name in weights:
            yield name, parameter - before[name].to("cpu", torch.float32)


def _frozen(student: Student) -> Frozen | None:
    """The parts that are the teacher's own files; None where it has no folder."""
    if student.config.teacher.path is None:
        return None
    source = student.config.teacher.source
    base = locate(source.path, variant=source.variant, revision=source.revision)
    if base.is_file():
        return None
    variant, pipe, fused = variant_of(base, source.variant), student.pipeline.pipe, []
    if source.loras:  # which may have changed text encoders, in the dtype that these were loaded in
        own = [p for name, p in pipe.components.items() if isinstance(p, nn.Module) and name not in denoisers_of(pipe)]
        auto = next(map(dtype_of, own), torch.float32)
        fused = touched(pipe, load_teacher(replace(source, loras=()), device="cpu", auto=auto))
    return frozen_parts(pipe, base, variant=variant, but=fused)


def notes_for(student: Student, *, guidance: float | None) -> Notes:
    """What an export says of the student beside what Diffusers reads."""
    config, pipeline = student.config, student.pipeline
    teacher = config.teacher.path
    return Notes(
        steps=config.student.steps,
        guidance=guidance,
        arguments=pipeline.size,
        num_classes=len(pipeline.classes) or None,
        null_label=pipeline.null_label,
        objective=config.stages[-1].name,
        licence=licence_of(teacher) if teacher is not None else {},
        **_origin(config),
        sampler=config.student.sampler,
        stops=student.stops,
    )


def _origin(config: Config) -> dict[str, Any]:
    """What the notes say of the teacher: a hub id or a relative path as it is, nothing of this machine's folders."""
    if config.teacher.path is None:
        return {}
    source, path = config.teacher.source, Path(config.teacher.path)
    base = locate(source.path, variant=source.variant, revision=source.revision)
    private = path.is_absolute() or ".." in path.parts
    return {
        "teacher": path.name if private else str(path),
        "hub": not path.exists(),
        "variant": variant_of(base, source.variant) if base.is_dir() else None,
        "revision": source.revision,
        "loras": tuple(recorded(lora)[1] for lora in source.loras),
    }


def _roomy(student: Student) -> str:
    """Where exports are verified: the device of training if a few fp32 copies of the pipeline fit, else the CPU."""
    parts = [part for part in student.pipeline.pipe.components.values() if isinstance(part, nn.Module)]
    needed = COPIES * 4 * sum(p.numel() for part in parts for p in part.parameters())
    fits = student.device.type == "cuda" and torch.cuda.mem_get_info(student.device)[0] > needed
    return str(student.device) if fits else "cpu"
