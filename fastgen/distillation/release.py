"""A trained generator for everyone: a whole pipeline, a LoRA where it is one, and the proof that both sample."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Config
from ..engine.dtypes import teacher_dtype
from ..engine.run import Trained
from ..errors import VerificationError, say
from ..export.adapter import Adapter
from ..export.by_layer import written_by_layer
from ..export.card import licence_of
from ..export.export import export
from ..export.fidelity import check_sound, saved_as
from ..export.frozen import Frozen, frozen_parts, touched
from ..export.kohya import check_kohya
from ..export.lora import export_lora, has_loader, known_keys
from ..export.place import Place, places
from ..export.unguided import unguided
from ..export.verify import Export
from ..models.casting import dtype_of
from ..models.made import Made, in_float32
from ..models.merging import lora_layers, low_rank_updates
from ..models.pipelines.components import denoisers_of
from ..models.pipelines.heads import check_callback
from ..models.pipelines.loading import load, locate, variant_of
from ..models.pipelines.notes import Notes
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stacked import recorded, written
from ..models.pipelines.teacher import load_teacher
from ..models.pipelines.weightless import networks_of
from ..models.targets import find_targets
from .student import Student
from .verifier import Verifier, Written


def release(student: Student, trained: Trained) -> None:
    """Exports the last stage's generator and verifies everything that was written.

    Raises:
        UserError: weights are not finite or became zero, and nothing was written.
        VerificationError: all is written, but an export does not sample as the student was trained.
    """
    config, pipeline = student.config, student.pipeline
    weights = trained.weights[config.stages[-1].name]
    network = student.trained(weights)
    heads = student.heads(weights, network)
    updates = check_sound(network, _updates(student, weights, network))
    saved = saved_as(network, updates, half=teacher_dtype(config), choice=config.export.dtype)
    if notice := saved.notice():
        say(notice)
    pipe = pipeline.student(saved.outline, student.schedules[0].scheduler)
    silent = unguided(pipe)
    notes = replace(notes_for(student, guidance=1.0 if silent is pipe else None), unchanged=not updates)
    with written_by_layer(silent, saved.network):
        export(silent, notes, config.exported, student.schedules, frozen=_frozen(student), heads=heads)
    verifier = Verifier(student, _places(student, divisible=heads is None), [], heads.weights if heads else {})
    rounded = None if saved.exact else saved.network.then(in_float32)
    for schedule in student.schedules:
        place = config.exported / schedule.folder
        turns = heads and heads.of(schedule.steps)
        exported = Export(str(place), heads=str(place / turns.FILE) if turns else None)
        verifier(Written(exported, schedule, partial(load, place), network, notes, rounded))
    if makes_lora(config, pipeline):
        _release_lora(student, weights, network, verifier)
    if verifier.failures:
        raise VerificationError(
            "training is over and everything was written, but not all of it is as it was trained: "
            + "; ".join(verifier.failures)
        )


def makes_lora(config: Config, pipeline: Pipeline) -> bool:
    """Whether the student is also exported as a LoRA: plain Diffusers can load it, onto something, for all steps."""
    trained = config.sharing == "lora" and not config.lora.norms and not has_heads(config)
    return trained and config.teacher.path is not None and has_loader(pipeline.pipe)


def has_heads(config: Config) -> bool:
    """Whether the student has another last layer at each step, for which no one weight stands."""
    return config.stages[-1].objective.needs.heads > 0 and config.student.steps != (1,)


def check_release(config: Config, pipeline: Pipeline) -> None:
    """Raises UserError before anything is trained where the student could not be written as the config asks."""
    if has_heads(config):
        check_callback(pipeline.pipe)
    if "kohya" in (config.lora.keys or ()) and makes_lora(config, pipeline):
        check_kohya(pipeline.network, find_targets(pipeline.network, config.lora.targets))


def _release_lora(student: Student, weights: Mapping[str, Tensor], network: Made, verifier: Verifier) -> None:
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
        loaded = partial(load_teacher, replace(source, dtype="fp32"))
        verifier(Written(exported, schedule, loaded, network, notes))


def _updates(student: Student, weights: Mapping[str, Tensor], network: Made) -> Iterator[tuple[str, Tensor]]:
    """(parameter, what training added to what it started as), one after the other."""
    if student.config.sharing == "lora":
        device = next(network.like.parameters()).device
        yield from low_rank_updates(weights, alpha=student.config.lora.alpha, device=device)
    for name, before in student.pipeline.start.named_parameters():
        if name in weights:
            trained = network[name]
            yield name, trained - before.to(trained)


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


def _places(student: Student, *, divisible: bool) -> Sequence[Place]:
    """Where exports are verified: on the GPU of training if it is one, else on the CPU."""
    networks = networks_of(student.pipeline.pipe).values()
    needed = 4 * sum(p.numel() for network in networks for p in network.parameters())
    return places(student.device if student.device.type == "cuda" else "cpu", lambda: needed, divisible=divisible)
