"""What a run would do, from its config alone: nothing is trained, loaded onto a device or written."""

import json
import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import diffusers
import torch

from .config import Config, Stage
from .configfile import load
from .errors import UserError
from .models.create import create
from .models.roles import DENOISERS
from .models.watch import denoiser_name
from .objectives import roles_of

TRAINED_BYTES = 4 + 4 + 8  # fp32 weight, gradient, two Adam moments
MIB = 2**20


@dataclass(frozen=True)
class Part:
    """One line of the memory estimate."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Recipe:
    """The config of a teacher that has to be trained first."""

    file: Path
    config: Config


def recipe_of(config: Config, recipes: Path) -> Recipe | None:
    """The recipe of a teacher that does not exist yet; None where there is nothing to train first.

    Raises:
        UserError: the recipe leaves its result elsewhere, or needs that teacher itself.
    """
    teacher = config.teacher
    if teacher.path is None or teacher.recipe is None or Path(teacher.path).exists():
        return None
    file = recipes / teacher.recipe
    recipe = load(file)
    if recipe.exported != Path(teacher.path):
        raise UserError(
            f"teacher.path {teacher.path} does not exist, and its recipe {file} leaves its result in "
            f"{recipe.exported}: make the two agree"
        )
    if recipe.teacher.path == teacher.path:
        raise UserError(f"teacher.recipe {file} distils {teacher.path} itself: name the config that makes that folder")
    return Recipe(file, recipe)


def plan(config: Config, *, recipes: Path) -> str:
    """Stages, networks, updates and the memory of everything but activations, as text."""
    lines = []
    teacher = config.teacher
    recipe = recipe_of(config, recipes)
    if recipe is not None:
        lines += [f"first, because {teacher.path} does not exist yet, {recipe.file}:"]
        lines += [f"  {line}" for line in plan(recipe.config, recipes=recipe.file.parent).splitlines()]
    size = _denoiser_size(config, recipes)
    counted = f"{size / 1e6:.2f} M parameters" if size is not None else "not here, it would be downloaded"
    lines += [f"teacher: {teacher.path or 'random weights'}, denoiser {counted}"]
    lines += [
        f"student: {', '.join(map(str, config.student.steps))} steps, {config.student.sampler}, {config.exported}"
    ]
    for index, stage in enumerate(config.stages):
        lines += _stage_lines(index, stage, size)
    return "\n".join(lines)


def _stage_lines(index: int, stage: Stage, size: int | None) -> list[str]:
    settings, cycle = stage.train, stage.objective.cycle
    cycles = math.ceil(settings.images / (settings.batch * sum("generator" in turn for turn in cycle)))
    updates = {role: cycles * sum(role in turn for turn in cycle) for role in roles_of(stage.objective)}
    needs = sorted(stage.objective.needs - {"real_score", "null", "one_step"})
    budget = f"{settings.images:,} images in batches of {settings.batch}, {settings.precision}"
    turns = [(len(list(repeats)), "+".join(turn)) for turn, repeats in groupby(cycle)]
    lines = [
        f"stage {index}, {stage.name}: {budget}, {'reads ' + ' and '.join(needs) if needs else 'data-free'}",
        f"  turns of a cycle: {', '.join(f'{count} x {turn}' if count > 1 else turn for count, turn in turns)}",
        f"  updates: {', '.join(f'{role} {count:,}' for role, count in updates.items())}",
    ]
    if size is not None:
        parts = _memory(stage, size)
        total = sum(part.bytes for part in parts)
        lines += [f"  {part.name:<24}{part.parameters / 1e6:>10.2f} M{part.bytes / MIB:>12.1f} MiB" for part in parts]
        lines += [f"  {'sum, without activations':<24}{'':>12}{total / MIB:>12.1f} MiB"]
    return lines


def _memory(stage: Stage, size: int) -> list[Part]:
    trained = roles_of(stage.objective)
    frozen_bytes = 2 if stage.train.precision == "bf16" else 4
    parts = [
        Part(
            f"{role} ({'trained' if role in trained else 'frozen'})", size, size * _bytes(role in trained, frozen_bytes)
        )
        for role in DENOISERS
        if role in trained or role in stage.objective.needs
    ]
    if stage.train.ema is not None:
        parts.append(Part("generator average", size, 4 * size))
    return parts


def _bytes(trained: bool, frozen_bytes: int) -> int:
    return TRAINED_BYTES if trained else frozen_bytes


def _denoiser_size(config: Config, recipes: Path) -> int | None:
    """Parameters of the denoiser, counted on torch's meta device; None if the teacher is not on this machine."""
    teacher = config.teacher
    with torch.device("meta"):
        if teacher.new is not None:
            pipe = create(teacher.new.pipeline, teacher.new.parts, seed=0)
            return sum(p.numel() for p in getattr(pipe, denoiser_name(pipe)).parameters())
        assert teacher.path is not None
        recipe = recipe_of(config, recipes)
        if recipe is not None:
            return _denoiser_size(recipe.config, recipe.file.parent)
        folder = Path(teacher.path)
        return _size_in(folder) if folder.exists() else None


def _size_in(folder: Path) -> int:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        name = next((part for part in ("transformer", "unet") if part in index), "unet")
        kind = getattr(diffusers, index[name][1])
        settings = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        return sum(p.numel() for p in kind.from_config(settings).parameters())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a pipeline that could be read ({type(error).__name__}: {error}): give the folder that "
            "save_pretrained wrote for the whole pipeline"
        ) from error
