"""An export verified by itself: the student rebuilt from the folder, its notes saying what was trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models.casting import renewed
from ..models.conditioning import Conditioning
from ..models.pipelines.arguments import SIZES, call_arguments, parameters
from ..models.pipelines.components import network_of
from ..models.pipelines.folders import check_is_pipeline, is_lora
from ..models.pipelines.heads import StepHeads
from ..models.pipelines.loading import load
from ..models.pipelines.notes import Notes
from ..models.pipelines.opening import below, put_on
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stacked import written
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.students import Students
from ..models.pipelines.weightless import networks_of
from .contents import check_files
from .scheduler_export import SchedulerExport
from .stops import difference, stops_of
from .verify import SEEDS, Agreement, Export, Ours, verify

_LABELS, _PROMPTS = (0, 1, 0), ("a", "b", "a")


def verify_folder(folder: Path, *, device: str = "cpu") -> list[Agreement]:
    """Verifies an exported pipeline, or each of those below it, against what its notes say was trained.

    Raises:
        CheckpointError: a file is not what was written.
        UserError: no export, one whose weights are not finite or the teacher's, or that samples otherwise than trained.
    """
    agreements = []
    told = {place: _notes(place) for place in places(folder)}
    check_files(folder, [*told.values()])
    for place, notes in told.items():
        heads = StepHeads.read(place)
        export = Export(str(place), heads=str(place / StepHeads.FILE) if heads else None)
        loaded = partial(load, place, device=device)
        agreements += _verified(export, loaded(), loaded, notes, device, heads=heads.weights if heads else {})
    return agreements


def verify_lora(
    folder: Path,
    base: str | None = None,
    *,
    stacked: Sequence[tuple[Path, float | None]] = (),
    device: str = "cpu",
) -> list[Agreement]:
    """Verifies an exported LoRA on its base pipeline and the LoRAs below it, as its notes name them.

    Args:
        base: the pipeline below; its teacher where not given.
        stacked: files of LoRAs below it and their weights, where the notes cannot say where they lie on this machine.

    Raises:
        CheckpointError: a file is not what was written.
        UserError: no export, a base or LoRA that is not found, or one that does not sample as it was trained.
    """
    agreements, notes = [], _notes(folder)
    if not is_lora(folder):
        raise UserError(
            f"{folder} holds a pipeline, and --lora, --base and --stack are of a LoRA: leave them out, or give the "
            "LoRA's folder beside it"
        )
    check_files(folder, [notes])
    under = below(folder, notes, base, stacked)

    def loaded(scheduler: Path) -> StockPipeline:
        pipe = under.load(device)
        put_on(pipe, folder, under.loras, scheduler=scheduler)
        return pipe

    for place in sorted({file.parent for file in folder.rglob("scheduler_config.json")}):
        pipe = loaded(place)
        loras = (*under.loras, *written(pipe, str(folder), "diffusers"))
        steps = tuple(n for n in notes.steps if place.parent == folder or place.parent.name == f"{n}step")
        export = Export(str(under.base), loras, str(place), under.variant)
        agreements += _verified(export, pipe, partial(loaded, place), replace(notes, steps=steps), device)
    return agreements


def exports(folder: Path) -> list[Path]:
    """The students of an export of several, each an export of its own; of any other the folder itself.

    Raises:
        UserError: what says which student is for what is damaged.
    """
    students = Students.read(folder)
    return [folder / name for name in students.folders] if students else [folder]


def places(folder: Path) -> list[Path]:
    """The pipeline folders of an export: itself, or one for each step count.

    Raises:
        UserError: there is none.
    """
    found = (
        [folder] if (folder / Notes.FILE).is_file() else sorted(f.parent for f in folder.glob(f"*step/{Notes.FILE}"))
    )
    if not found:
        check_is_pipeline(folder)
        raise UserError(f"{folder} is no export: neither it nor a folder 1step, 4step ... in it has {Notes.FILE}")
    return found


def calls_for(pipeline: Pipeline, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """What a stock call is told for each seed of a verification."""
    asked: dict[str, list[dict[str, Any]]] = {
        "none": [{} for _ in SEEDS],
        "label": [{"class_labels": [label]} for label in _LABELS],
        "prompt": [{"prompt": [prompt]} for prompt in _PROMPTS],
    }
    takes = parameters(pipeline.pipe)
    return [{**row, **{k: v for k, v in arguments.items() if k in takes}} for row in asked[pipeline.kind]]


def conditions_for(pipeline: Pipeline) -> Conditioning:
    """The same as the denoiser is told it."""
    return pipeline.condition(len(SEEDS), labels=torch.tensor(_LABELS), prompts=_PROMPTS)


def _verified(
    export: Export,
    pipe: StockPipeline,
    again: Callable[[], StockPipeline],
    notes: Notes,
    device: str,
    *,
    heads: Mapping[int, Tensor] = MappingProxyType({}),
) -> list[Agreement]:
    """Verifies an export whose networks make room for the isolated process, and are loaded again afterwards."""
    assert notes.sampler is not None
    size = {name: value for name, value in notes.arguments.items() if name in SIZES}
    pipeline = Pipeline(pipe, num_classes=notes.num_classes, null_label=notes.null_label, size=size)
    for n in notes.steps:
        found = stops_of(pipeline.reading, [stop.timestep for stop in notes.stops[n]])
        fault = difference(notes.stops[n], found)
        if fault:
            raise UserError(f"{export.scheduler or export.pipeline} was changed since it was trained: {fault}")
    calls = calls_for(pipeline, call_arguments(pipe, notes))
    cond = conditions_for(pipeline).to(device)
    schedule = SchedulerExport(notes.steps, pipe.scheduler)
    for network in networks_of(pipe).values():
        renewed(network, lambda _, tensor: tensor.to("meta"))
    ours = Ours(lambda: pipeline.speaking(network_of(again())), cond, calls, notes.sampler, notes.stops, heads=heads)
    return verify(export, schedule, ours, device=device)


def _notes(folder: Path) -> Notes:
    notes = Notes.read(folder)
    if notes is None or notes.sampler is None or set(notes.steps) - set(notes.stops):
        raise UserError(
            f"{folder} does not say what it was trained for ({Notes.FILE} lacks sampler and stops), so it cannot be "
            "verified: export the student again"
        )
    return notes
