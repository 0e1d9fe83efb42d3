"""What a run would do, from its config alone: nothing is trained, loaded onto a device or written."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ..config.lora import LoRAConfig
from ..config.schema import Config, StageConfig
from ..config.train import TrainConfig
from ..config.yaml_file import load
from ..data import SOURCE_KINDS
from ..engine.dtypes import base_of, teacher_dtype
from ..engine.eight_bits import BLOCK
from ..engine.frozen import SHARED
from ..engine.lineage import Kind, is_generators, kind_of
from ..errors import UserError
from ..models.experts import Experts
from ..models.pipelines.components import NETWORKS, SECOND, network_of
from ..models.pipelines.create import create
from ..models.pipelines.folders import INDEX, check_is_pipeline
from ..models.pipelines.loading import HUB_ID
from ..models.targets import find_targets
from ..objectives import OBJECTIVE_KINDS, denoisers_of, roles_of

BASE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.5}
COPIED_BYTES = {"fp32": 0, "bf16": 2, "fp8": 2, "int8": 2, "nf4": 2}
"""Bytes for each of an adapter's weights that layers compute with, beside those in fp32, by the base's dtype."""
MIB = 2**20


@dataclass(frozen=True)
class MemoryLine:
    """One line of the memory estimate."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class TeacherRecipe:
    """The config of a teacher that has to be trained first."""

    file: Path
    config: Config


def recipe_of(config: Config, recipes: Path) -> TeacherRecipe | None:
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
    return TeacherRecipe(file, recipe)


def plan(config: Config, *, recipes: Path) -> str:
    """Stages, networks, updates and the memory of everything but activations, as text."""
    lines = []
    teacher = config.teacher
    recipe = recipe_of(config, recipes)
    if recipe is not None:
        lines += [f"first, because {teacher.path} does not exist yet, {recipe.file}:"]
        lines += [f"  {line}" for line in plan(recipe.config, recipes=recipe.file.parent).splitlines()]
    net = denoiser(config, recipes)
    start = net and started(config, net)
    counted = f"{parameters(net) / 1e6:.2f} M parameters" if net is not None else _elsewhere(teacher.path or "")
    loras = "".join(f" + {lora.path} x {lora.weight:g}" for lora in teacher.loras)
    lines += [f"teacher: {teacher.path or 'random weights'}{loras}, denoiser {counted}"]
    student = config.student
    lines += [f"student: {', '.join(map(str, student.steps))} steps, {student.sampler}, {config.exported}"]
    if config.student.network is not None and start is not None:
        lines += [f"  a network of its own: {parameters(start) / 1e6:.2f} M parameters"]
    if config.sharing == "lora":
        lines += [f"roles share the teacher's network: LoRAs of rank {config.lora.rank}, {config.exported_lora}"]
    if config.sharing == "scores":
        lines += [f"the scores share the teacher's network: a LoRA of rank {config.lora.rank}"]
    if not SOURCE_KINDS.is_own(type(config.data)):
        lines += [f"data: {SOURCE_KINDS.origin(type(config.data)).identity}"]
    for index, stage in enumerate(config.stages):
        lines += _stage_lines(index, stage, config, net, start)
    return "\n".join(lines)


def _elsewhere(path: str) -> str:
    """Says where a denoiser is that is in no folder on this machine."""
    if Path(path).is_file():
        return "in a single file"
    return "not here, it would be downloaded" if HUB_ID.fullmatch(path) else "not here, there is no such folder"


def _stage_lines(
    index: int, stage: StageConfig, config: Config, net: nn.Module | None, start: nn.Module | None
) -> list[str]:
    settings, cycle, cycles = stage.train, stage.objective.cycle, cycles_of(stage)
    updates = {role: cycles * sum(role in turn for turn in cycle) for role in roles_of(stage.objective)}
    needs = stage.objective.needs
    read = [name for name, asked in (("images", needs.images), ("pairs", needs.pairs)) if asked]
    budget = f"{settings.images:,} images in batches of {settings.batch}, {settings.precision}"
    turns = [(len(list(repeats)), "+".join(turn)) for turn, repeats in groupby(cycle)]
    lines = [
        f"stage {index}, {stage.name}: {budget}, {'reads ' + ' and '.join(read) if read else 'data-free'}",
        f"  turns of a cycle: {', '.join(f'{count} x {turn}' if count > 1 else turn for count, turn in turns)}",
        f"  updates: {', '.join(f'{role} {count:,}' for role, count in updates.items())}",
    ]
    if not OBJECTIVE_KINDS.is_own(type(stage.objective)):
        lines += [f"  objective: {OBJECTIVE_KINDS.origin(type(stage.objective)).identity}"]
    if net is not None and start is not None:
        parts = memory(stage, config, net, start)
        total = sum(part.bytes for part in parts)
        lines += [f"  {part.name:<24}{part.parameters / 1e6:>10.2f} M{part.bytes / MIB:>12.1f} MiB" for part in parts]
        lines += [f"  {'sum, without activations':<24}{'':>12}{total / MIB:>12.1f} MiB"]
    return lines


def cycles_of(stage: StageConfig) -> int:
    """Cycles of a stage's whole budget."""
    return math.ceil(
        stage.train.images / (stage.train.batch * sum("generator" in turn for turn in stage.objective.cycle))
    )


def memory(stage: StageConfig, config: Config, net: nn.Module, start: nn.Module) -> list[MemoryLine]:
    """The teacher's network, the copies and the adapters of it, and the generator's average.

    Args:
        net: the teacher's network.
        start: network that the generator starts as a copy of.
    """
    shared, size, loaded = SHARED[config.sharing], parameters(net), teacher_dtype(config).itemsize
    lines = [] if config.sharing == "lora" else [MemoryLine("teacher's pipeline", size, size * loaded)]
    if shared:
        lines.append(MemoryLine("network of shared roles", size, int(size * BASE_BYTES[base_of(config)])))
    adapter = _adapter(net, config.lora) if shared else 0
    for role in denoisers_of(stage.objective):
        origin = stage.carry.get(role, "teacher")
        kind = kind_of(role, origin, roles_of(stage.objective))
        if role not in shared:
            own = parameters(start) if is_generators(role, origin) else size
            lines += _network_line(role, kind, own, stage.train, loaded)
        elif kind != "lent":
            lines.append(_adapter_line(role, kind, adapter, stage.train, config))
    if stage.train.ema is not None and stage.train.ema_device == "auto":
        averaged = adapter if "generator" in shared else parameters(start)
        lines.append(MemoryLine("generator average", averaged, 4 * averaged))
    return lines


def _network_line(role: str, kind: Kind, size: int, train: TrainConfig, loaded: int) -> Iterator[MemoryLine]:
    """The network of its own that a role has; none where it is lent the teacher's, in the dtype that it is loaded in.

    Args:
        size: parameters of the network.
        loaded: bytes of each of the teacher's.
    """
    frozen = 2 if train.precision == "bf16" else loaded
    if kind == "trained":
        yield MemoryLine(f"{role} (trained)", size, int(size * _trained_bytes(train, role)))
    elif kind == "target":
        yield MemoryLine(f"{role} (frozen)", size, size * 4)
    elif kind == "kept" or frozen != loaded:
        yield MemoryLine(f"{role} (frozen)", size, size * frozen)


def _adapter_line(role: str, kind: Kind, size: int, train: TrainConfig, config: Config) -> MemoryLine:
    """A role's adapter, whose masters and gradients are in fp32 whatever those of whole networks are."""
    wide = train.model_copy(update={"masters": "fp32", "gradients": "fp32"})
    held = _trained_bytes(wide, role) if kind == "trained" else 4
    return MemoryLine(f"{role} (adapter)", size, int(size * (COPIED_BYTES[base_of(config)] + held)))


def _trained_bytes(train: TrainConfig, role: str) -> float:
    """Bytes for each trained parameter of a role: weight, gradient, moments (AdamW's first only if beta1 > 0)."""
    optim = train.optim_of(role)
    moments = 1 if optim.name == "muon" or not optim.betas[0] else 2
    moment = 1 + 4 / BLOCK if optim.name == "adamw8bit" else 4
    return (2 if train.masters == "bf16" else 4) + (2 if train.gradients == "bf16" else 4) + moments * moment


def checkpoint_bytes(stage: StageConfig, config: Config, net: nn.Module, start: nn.Module) -> int:
    """The least bytes of a checkpoint: weights and moments of the networks that are trained.

    Args:
        net, start: as of `memory`.
    """
    trained, shared = roles_of(stage.objective), SHARED[config.sharing]
    adapter = _adapter(net, config.lora) if shared else 0
    gradient = 2 if stage.train.gradients == "bf16" else 4
    return int(
        sum(
            (adapter if role in shared else parameters(start if role == "generator" else net))
            * (_trained_bytes(stage.train, role) - gradient)
            for role in denoisers_of(stage.objective)
            if role in trained
        )
    )


def _adapter(net: nn.Module, lora: LoRAConfig) -> int:
    """Parameters of a low-rank adapter."""
    return sum(lora.rank * _ends(net.get_submodule(name)) for name in find_targets(net, lora.targets))


def _ends(layer: nn.Module) -> int:
    """Inputs and outputs of a layer: what a low-rank update has per rank."""
    weight: Any = layer.weight
    return int(weight.shape[0] + weight[0].numel())


def parameters(net: nn.Module) -> int:
    """How many numbers a network has."""
    return sum(p.numel() for p in net.parameters())


def started(config: Config, net: nn.Module) -> nn.Module:
    """The network that the generator starts as a copy of, on torch's meta device, by the teacher's.

    Raises:
        UserError: there is no such network.
    """
    if config.student.network is None:
        return net
    with torch.device("meta"):
        return config.student.network.source.outline(net)


def denoiser(config: Config, recipes: Path) -> nn.Module | None:
    """The denoiser on torch's meta device; None if its config is not on this machine."""
    teacher = config.teacher
    with torch.device("meta"):
        if teacher.new is not None:
            network: nn.Module = network_of(create(teacher.new.pipeline, teacher.new.parts, seed=0))
            return network
        assert teacher.path is not None
        recipe = recipe_of(config, recipes)
        if recipe is not None:
            return denoiser(recipe.config, recipe.file.parent)
        folder = Path(teacher.path)
        if not folder.is_dir():
            return None
        check_is_pipeline(folder)
        return _network_in(folder)


def _network_in(folder: Path) -> nn.Module:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        name = next((part for part in NETWORKS if part in index), None)
        if name is None:
            raise UserError(f"{folder} holds neither a `unet` nor a `transformer`, so there is nothing to distil")
        first = _part_in(folder, name, index)
        paired = index.get("boundary_ratio") is not None
        return Experts(first, _part_in(folder, SECOND, index), boundary=0.0) if paired else first
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a pipeline that could be read ({type(error).__name__}: {error}): give the folder that "
            "save_pretrained wrote for the whole pipeline"
        ) from error


def _part_in(folder: Path, name: str, index: dict[str, Any]) -> nn.Module:
    settings = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
    network: nn.Module = getattr(diffusers, index[name][1]).from_config(settings)
    return network
