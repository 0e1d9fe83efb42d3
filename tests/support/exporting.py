"""Tiny students of any family, and verification without the wait for a fresh process."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from families import FAMILIES
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

from fastgen.export.adapter import Adapter
from fastgen.export.export import export
from fastgen.export.lora import export_lora
from fastgen.export.rebuild import calls_for, conditions_for
from fastgen.export.scheduler_export import Emitted, SchedulerExport, scheduler_exports
from fastgen.export.stops import stops_of
from fastgen.export.verify import Ours
from fastgen.models.pipelines.arguments import call_arguments
from fastgen.models.pipelines.components import denoiser_name
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.probe import emitted

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def adapted(pipe: DiffusionPipeline, *, seed: int = 0, **settings) -> tuple[torch.nn.Module, Adapter]:
    """The denoiser with a random adapter, and the adapter alone; the pipeline stays as it was."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ATTENTION, **settings})
    net = inject_adapter_in_model(config, copy.deepcopy(getattr(pipe, denoiser_name(pipe))))
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    return net, Adapter(get_peft_model_state_dict(net), config)


EXAMPLES = {"none": {}, "label": {"class_labels": [0, 1]}, "prompt": {"prompt": ["a", "b"]}}


def emitted_by(pipeline: Pipeline) -> Emitted:
    """Where the pipeline's own call stops under another scheduler."""

    def stops(scheduler, n: int) -> list[float]:
        own, pipeline.pipe.scheduler = pipeline.pipe.scheduler, scheduler
        try:
            return emitted(pipeline.pipe, {**EXAMPLES[pipeline.kind], **pipeline.size}, steps=n)
        finally:
            pipeline.pipe.scheduler = own

    return stops


def listed(scheduler, n: int) -> list[float]:
    """The timesteps that a scheduler lists by itself; a pipeline may ask it for others."""
    scheduler.set_timesteps(n)
    return [float(t) for t in scheduler.timesteps]


@dataclass(frozen=True)
class Student:
    """An untrained student: its teacher, how it is served, and what training would know of it."""

    teacher: Pipeline
    schedules: list[SchedulerExport]
    notes: Notes
    ours: Ours

    @property
    def pipe(self) -> DiffusionPipeline:
        return self.teacher.student(self.teacher.network, self.schedules[0].scheduler)


def student_of(pipe: DiffusionPipeline, steps, sampler, size=None, **told) -> Student:
    """A student with the teacher's weights; `told` goes to the notes. How they are read is not tested here again."""
    teacher = Pipeline(pipe, size=size, test=False)
    served = scheduler_exports(pipe.scheduler, steps, sampler=sampler, emitted=emitted_by(teacher))
    model, stops = teacher.denoiser(), {}
    for schedule in served:
        seen = Pipeline(teacher.student(teacher.network, schedule.scheduler), size=size, test=False)
        model = seen.denoiser()
        stops |= {n: stops_of(seen.reading, emitted_by(teacher)(schedule.scheduler, n)) for n in schedule.steps}
    notes = Notes(steps=tuple(steps), sampler=sampler, stops=stops, arguments=dict(size or {}), **told)
    calls = calls_for(teacher, call_arguments(pipe, notes))
    return Student(teacher, served, notes, Ours(lambda: model, conditions_for(teacher), calls, sampler, stops))


def family_student(name: str, steps, sampler) -> Student:
    family = FAMILIES[name]
    return student_of(family.build(), steps, sampler, family.size)


def exported(student: Student, folder: Path) -> Path:
    """The folder, with the student in it."""
    return export(student.teacher.pipe, student.notes, folder, student.schedules)


def exported_as(kind: Literal["pipeline", "lora"], folder: Path) -> Path:
    """A student of Stable Diffusion in two steps, as a whole pipeline or as a LoRA of a base beside it."""
    if kind == "pipeline":
        return exported(family_student("stable_diffusion", (2,), "ode"), folder / "student")
    pipe = FAMILIES["stable_diffusion"].build()
    pipe.save_pretrained(folder / "base")
    student = student_of(pipe, (2,), "ode", FAMILIES["stable_diffusion"].size)
    return export_lora(pipe, adapted(pipe)[1], student.notes, folder / "student", student.schedules)


def edit(folder: Path, file: str, **changes: Any) -> None:
    """Changes some values of one of its JSON files."""
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))
