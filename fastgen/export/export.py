"""A trained generator as stock pipeline folders, and on the hub."""

import copy
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from tokenizers.models import BPE
from transformers import PreTrainedModel

from ..disk import require_space
from ..errors import UserError
from ..files import atomic_folder
from ..manifest import write_manifest
from ..models.pipelines.heads import StepHeads
from ..models.pipelines.loading import HUB_FAILURES, line
from ..models.pipelines.notes import Notes
from ..models.pipelines.stock_pipeline import StockPipeline, StockScheduler
from .card import card, top_card
from .frozen import Frozen
from .scheduler_export import SchedulerExport

CARDS = "*.md"
"""Files of an export that whoever publishes it may write anew."""


def export(
    pipe: StockPipeline,
    notes: Notes,
    folder: Path,
    schedules: Sequence[SchedulerExport] = (),
    *,
    frozen: Frozen | None = None,
    heads: StepHeads | None = None,
) -> Path:
    """Saves a pipeline with its notes and model card; what was in `folder` is replaced once the new one is whole.

    Args:
        schedules: one folder for each, below `folder` where they say so, with weights in common as hard links; none
            leaves the pipeline's own scheduler for all steps of the notes.
        frozen: parts to be copied from the teacher's folder; all others are saved.
        heads: last layers of the steps, where each has its own.
    """
    schedules = schedules or [SchedulerExport(notes.steps, pipe.scheduler)]
    with atomic_folder(folder, replace=True) as temporary:
        require_space(folder, 0 if frozen else _bytes_of(pipe))
        saved: list[Path] = []
        for schedule in schedules:
            served = with_scheduler(pipe, schedule.scheduler)
            part = notes_of(notes, schedule)
            place = temporary / schedule.folder
            if saved:
                _save_beside(served, place, saved[0])
            else:
                _save(served, place, frozen)
                forget_origin(place)
                load_alike(place)
            saved.append(place)
            turns = heads and heads.of(schedule.steps)
            if turns:
                turns.write(place)
            part.write(place)
            text = card(served, part, subfolder=schedule.folder, heads=turns)
            (place / "README.md").write_text(text, encoding="utf-8")
        if schedules[0].folder:
            (temporary / "README.md").write_text(top_card(pipe, notes, schedules), encoding="utf-8")
        write_manifest(temporary, but=CARDS)
    return folder


def with_scheduler(pipe: StockPipeline, scheduler: StockScheduler) -> StockPipeline:
    """The same parts under another scheduler."""
    served = copy.copy(pipe)
    served.register_modules(scheduler=scheduler)
    return served


def notes_of(notes: Notes, schedule: SchedulerExport) -> Notes:
    """The notes of one schedule's folder."""
    return replace(notes, steps=schedule.steps, stops={n: notes.stops[n] for n in schedule.steps if n in notes.stops})


def forget_origin(folder: Path) -> None:
    """Removes the path of the machine that the weights came from out of every config."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict) and _without_origin(config):
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_alike(folder: Path) -> None:
    """Lets a call that names no dtype load every part in float32, whatever its weights are saved in.

    That is what Diffusers does with its own networks; Transformers follows the config of each text encoder instead.
    """
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        half = {key: "float32" for key in ("dtype", "torch_dtype") if config.get(key, "float32") != "float32"}
        if half:
            file.write_text(json.dumps(config | half, indent=2) + "\n", encoding="utf-8")


def push(folder: Path, repo_id: str, *, api: Any = None) -> str:
    """Uploads an export to the hub and returns its address.

    Args:
        repo_id: OWNER/NAME; made where it does not exist, as a private model.
        api: a stand-in for `HfApi`, which uses the login of this machine.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    api = api or HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=str(folder), repo_id=repo_id, commit_message="Few-step student"))
    except HUB_FAILURES as error:
        raise UserError(
            f"{folder} could not be pushed to {repo_id!r}: {line(error)}. It takes a network, and OWNER/NAME of an "
            "account that you are logged in to (`hf auth login`)"
        ) from error


def _without_origin(config: dict[str, Any]) -> bool:
    """Drops `_name_or_path` at every depth; whether there was one."""
    found = config.pop("_name_or_path", None) is not None
    nested = [_without_origin(value) for value in config.values() if isinstance(value, dict)]
    return found or any(nested)


def _bytes_of(pipe: StockPipeline) -> int:
    """Bytes of the weights of all parts."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(parameter.nbytes for network in networks for parameter in network.parameters())


def _save(pipe: StockPipeline, place: Path, frozen: Frozen | None) -> None:
    for part in pipe.components.values():
        _name_as_published(part)
    if frozen is None:
        pipe.save_pretrained(place, safe_serialization=True)
    else:
        for name, part in pipe.components.items():
            if name not in frozen.parts and part is not None:
                part.save_pretrained(place / name)
        pipe.save_config(place)
        frozen.copy(place)
    _save_vocabularies(pipe, place)


def _name_as_published(part: Any) -> None:
    """Lets Transformers save weights under the names that all its versions read, also of models it did not load.

    From version 5 on CLIP's have others in memory, which version 4 takes for missing and draws at random.
    """
    with suppress(ImportError):  # of a version without such names
        from transformers.conversion_mapping import get_model_conversion_mapping

        if isinstance(part, PreTrainedModel) and getattr(part, "_weight_conversions", None) is None:
            known = get_model_conversion_mapping(part, add_legacy=False)
            vars(part)["_weight_conversions"] = [one for one in known if _is_whole(one, part)] or None


def _is_whole(conversion: Any, part: PreTrainedModel) -> bool:
    """Whether a change of names is not of a prefix, or of one that no weight of the whole model has yet."""
    removed = getattr(conversion, "prefix_to_remove", None)
    whole = not getattr(conversion, "model_prefix", "")
    return removed is None or (whole and not any(key.startswith(f"{removed}.") for key in part.state_dict()))


def _save_vocabularies(pipe: StockPipeline, place: Path) -> None:
    """Byte-pair vocabularies as the files that earlier versions of Transformers ask for."""
    for name, part in pipe.components.items():
        model = getattr(getattr(part, "backend_tokenizer", None), "model", None)
        if isinstance(model, BPE) and not (place / name / "vocab.json").exists():
            model.save(str(place / name))


def _save_beside(pipe: StockPipeline, place: Path, saved: Path) -> None:
    """The same pipeline once more: hard links where the disk has them, and a scheduler of the same kind."""
    shutil.copytree(saved, place, copy_function=_link, ignore=shutil.ignore_patterns("scheduler", "*.md", Notes.FILE))
    pipe.scheduler.save_pretrained(place / "scheduler")
    forget_origin(place / "scheduler")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
