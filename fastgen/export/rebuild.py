"""An export verified by itself: the student rebuilt from the folder, its notes saying what was trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, say
from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.pipelines.arguments import call_arguments, classifier_free, parameters
from ..models.pipelines.components import network_of
from ..models.pipelines.folders import check_is_pipeline, is_lora
from ..models.pipelines.heads import StepHeads
from ..models.pipelines.loading import load
from ..models.pipelines.notes import Notes
from ..models.pipelines.opening import Below, below, put_on
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stacked import written
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.students import Students
from ..models.pipelines.weightless import networks_of
from .contents import check_files
from .place import Place, bytes_in_float32, places, where_there_is_room
from .scheduler_export import SchedulerExport
from .stops import difference, stops_of
from .verify import SEEDS, Agreement, Export, Ours, verify

_LABELS, _PROMPTS = (0, 1, 0), ("a", "b", "a")


def verify_folder(folder: Path, *, device: str = "auto") -> list[Agreement]:
    """Verifies an exported pipeline, or each of those below it, against what its notes say was trained.

    Args:
        device: device to sample on, see `places`.

    Raises:
        CheckpointError: a file is not what was written.
        UserError: no export, one whose weights are not finite or the teacher's, or that samples otherwise than trained.
    """
    agreements = []
    told = {pipeline: _notes(pipeline) for pipeline in folders(folder)}
    check_files(folder, [*told.values()])
    for pipeline, notes in told.items():
        found = StepHeads.read(pipeline)
        heads = found.weights if found else {}
        tried = places(device, partial(bytes_in_float32, pipeline, None), divisible=not heads)
        verified = partial(_verified, partial(_whole, pipeline), partial(load, pipeline), notes, heads=heads)
        agreements += where_there_is_room(tried, verified)
    return agreements


def verify_lora(
    folder: Path,
    base: str | None = None,
    *,
    stacked: Sequence[tuple[Path, float | None]] = (),
    device: str = "auto",
) -> list[Agreement]:
    """Verifies an exported LoRA on its base pipeline and the LoRAs below it, as its notes name them.

    Args:
        base: the pipeline below; its teacher where not given.
        stacked: files of LoRAs below it and their weights, where the notes cannot say where they lie on this machine.
        device: device to sample on, see `places`.

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

    def loaded(scheduler: Path, *, device: str, parts: Mapping[str, Any] | None) -> StockPipeline:
        pipe = under.load(device, parts=parts)
        put_on(pipe, folder, under.loras, scheduler=scheduler)
        return pipe

    tried = places(device, partial(bytes_in_float32, under.base, under.variant))
    for scheduler in sorted({file.parent for file in folder.rglob("scheduler_config.json")}):
        steps = tuple(n for n in notes.steps if scheduler.parent == folder or scheduler.parent.name == f"{n}step")
        exported = partial(_on_base, under, folder, scheduler)
        verified = partial(_verified, exported, partial(loaded, scheduler), replace(notes, steps=steps))
        agreements += where_there_is_room(tried, verified)
    return agreements


def exports(folder: Path) -> list[Path]:
    """The students of an export of several, each an export of its own; of any other the folder itself.

    Raises:
        UserError: what says which student is for what is damaged, or a student is not there.
    """
    students = Students.read(folder)
    return [*students.places(folder)] if students else [folder]


def folders(folder: Path) -> list[Path]:
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
    """What the denoiser is told in the calls of a verification, one row for each seed."""
    return pipeline.condition(len(SEEDS), labels=torch.tensor(_LABELS), prompts=_PROMPTS)


def _whole(folder: Path, _: StockPipeline) -> Export:
    heads = folder / StepHeads.FILE
    return Export(str(folder), heads=str(heads) if heads.is_file() else None)


def _on_base(under: Below, folder: Path, scheduler: Path, pipe: StockPipeline) -> Export:
    loras = (*under.loras, *written(pipe, str(folder), "diffusers"))
    return Export(str(under.base), loras, str(scheduler), under.variant)


def _verified(
    exported: Callable[[StockPipeline], Export],
    load: Callable[..., StockPipeline],
    notes: Notes,
    place: Place,
    *,
    heads: Mapping[int, Tensor] = MappingProxyType({}),
) -> list[Agreement]:
    """Verifies an export whose networks make room for the isolated process, and are loaded again afterwards."""
    assert notes.sampler is not None
    pipe = place.pipe(load)
    export = exported(pipe)
    if not place.whole:
        say(f"{export.verified} is verified on {place}: in float32 the whole has no room there")
    size = {name: value for name, value in notes.arguments.items() if name not in classifier_free(pipe, 1.0)}
    pipeline = Pipeline(pipe, num_classes=notes.num_classes, null_label=notes.null_label, size=size)
    for n in notes.steps:
        found = stops_of(pipeline.reading, [stop.timestep for stop in notes.stops[n]])
        fault = difference(notes.stops[n], found)
        if fault:
            raise UserError(f"{export.scheduler or export.pipeline} was changed since it was trained: {fault}")
    calls = calls_for(pipeline, call_arguments(pipe, notes))
    cond = conditions_for(pipeline).to(place.device)
    schedule = SchedulerExport(notes.steps, pipe.scheduler)
    pipe.register_modules(**dict.fromkeys(networks_of(pipe)))

    def model() -> Denoiser:
        return pipeline.speaking(network_of(place.pipe(load)))

    ours = Ours(model, cond, calls, notes.sampler, notes.stops, heads=heads)
    return verify(export, schedule, ours, place=place)


def _notes(folder: Path) -> Notes:
    notes = Notes.read(folder)
    if notes is None or notes.sampler is None or set(notes.steps) - set(notes.stops):
        raise UserError(
            f"{folder} does not say what it was trained for ({Notes.FILE} lacks sampler and stops), so it cannot be "
            "verified: export the student again"
        )
    return notes
