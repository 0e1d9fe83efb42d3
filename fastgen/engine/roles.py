"""The roles of a stage: who exists, and whose weights each starts from."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..config.schema import Base, LoRAConfig, Sharing, StageConfig, TrainConfig
from ..errors import UserError
from ..models.adapters import Adaptation, AdaptedDenoiser, SharedNetwork, alias
from ..models.baking import check_bakeable, check_fusible
from ..models.casting import cast, dtype_of
from ..models.denoiser import NetworkDenoiser, RetargetedDenoiser
from ..models.discriminator import Discriminator
from ..models.graphs import Graphs
from ..models.head_bank import Intervals
from ..models.low_rank import DOWN
from ..models.masters import halve
from ..models.offload import is_swapped
from ..models.own_backbone import OwnDiscriminator
from ..models.pipelines.perceptual import Perceptual, lpips_network
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.rewards import loaded
from ..models.pipelines.source import DTYPES
from ..models.quantised import quantise
from ..models.regions import compile_regions
from ..models.roles import Roles, put
from ..models.state import STATES
from ..models.walk import Plan
from ..objectives import denoisers_of, roles_of
from ..objectives.parts.flow_map import intervals_of
from ..process.retold import ProcessName, retold
from ..seeds import seed_of
from .discriminators import discriminator_of
from .dtypes import QUANTISED, autocast_of
from .frozen import SHARED, frozen_in

Speaker = NetworkDenoiser | AdaptedDenoiser | RetargetedDenoiser
"""A denoiser that may play a role."""

Kind = Literal["trained", "target", "lent", "kept"]
"""What a role's network is: trained, the average of a trained one, the teacher's, or what a stage before left."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Origin ("generator", "ema") -> state dict of the stage before."""


@dataclass(frozen=True)
class Told:
    """What a role can be told beside the time: scalars by embeddings, or intervals by heads."""

    scalars: Sequence[str]
    heads: Intervals | None


def build_roles(
    pipeline: Pipeline,
    stage: StageConfig,
    *,
    student: Plan,
    weights: Weights | None,
    seed: int,
    guidance: float | None = None,
    process: ProcessName = "native",
    sharing: Sharing = "full",
    lora: LoRAConfig | None = None,
    base: Base = "fp32",
    recorder: Callable[[], Graphs] = Graphs,
) -> Roles:
    """Every denoiser that the objective names: a copy of the teacher's network, or where it shares, an adapter on it.

    The generator goes on from the stage before (its average if there is one), everyone else starts from the
    teacher, unless `carry` says otherwise. Without `weights` a checkpoint fills them in afterwards.

    Roles that speak another `process` than their networks are retargeted, and the student's stops with them.

    Shared roles act on the tensors of `pipeline.network`, which is cast in place to `base` where all roles share it;
    beside a generator of its own they get a copy if they need another dtype.

    What records calls of the networks is made by `recorder`, where they are recorded.

    Raises:
        UserError: `carry` names a stage before that does not exist, or the network cannot be shared as asked.
    """
    trained = roles_of(stage.objective)
    needs, names = stage.objective.needs, denoisers_of(stage.objective)
    origins = {name: _origin(name, stage, weights) for name in names}
    spoken = retold(process, pipeline.reading.process)
    student = student.on(spoken)
    heads = intervals_of(student.grids, spoken, needs.heads) if needs.heads else None
    told = {name: Told(needs.scalars_of(name), heads if name == "generator" else None) for name in names}
    recorded = stage.train.graphed and not (needs.second_derivative or is_swapped(pipeline.network))
    graphs = recorder() if recorded else None
    kinds = {name: _kind(name, origin, trained) for name, origin in origins.items()}
    torch.manual_seed(seed_of(seed, stage.name, "embeddings"))
    denoisers: dict[str, Speaker] = {
        name: _alone(pipeline, stage.train, kinds[name], told[name], graphs)
        for name in names
        if name not in SHARED[sharing]
    }
    if sharing != "full":
        torch.manual_seed(seed_of(seed, stage.name, "adapters"))
        shared = {name: told[name] for name in names if name in SHARED[sharing]}
        own = [name for name in shared if kinds[name] != "lent"]
        net = _base(pipeline.network, base, alone=sharing == "lora")
        denoisers |= _shared(pipeline, net, stage.train, lora or LoRAConfig(), told=shared, own=own, graphs=graphs)
    for name, origin in origins.items():
        if weights is not None and origin in weights:
            put(denoisers[name], weights[origin])
    if needs.follows and origins["fake_score"] == "teacher":
        _begin_alike(denoisers["fake_score"], denoisers["generator"])
    if "target" in denoisers:
        denoisers["target"].load_state_dict(denoisers["generator"].state_dict())
    if spoken is not pipeline.reading.process:
        denoisers = {name: RetargetedDenoiser(model, spoken) for name, model in denoisers.items()}
    members: dict[str, nn.Module] = dict(denoisers)
    torch.manual_seed(seed_of(seed, stage.name, "discriminator"))
    if "discriminator" in trained:
        members["discriminator"] = discriminator_of(pipeline, denoisers, stage)
    if stage.train.compile:
        _compile(members, every=stage.train.compile == "all")
    device = next(pipeline.network.parameters()).device
    members |= {name: STATES[name]().to(device) for name in needs.states}
    if needs.lpips:
        members["lpips"] = Perceptual(pipeline.codec, lpips_network().to(device))
    if needs.rewards:
        members["rewards"] = loaded(stage.rewards, stage.judges, pipeline.codec, device)
    student = student.telling(needs.scalars_of("generator"), guidance=guidance)
    if heads is not None:
        check_fusible(denoisers["generator"])
    if student.scalars:
        check_bakeable(denoisers["generator"], stops=len(student.scalars))
    frozen = {name: frozen_in(name, members[name], stage, sharing) for name in trained}
    if isinstance(judge := members.get("discriminator"), OwnDiscriminator):
        frozen["discriminator"] |= judge.unread
    return Roles(members, student, frozen=frozen, borrowed=[name for name, kind in kinds.items() if kind == "lent"])


@torch.no_grad()
def _begin_alike(follower: Speaker, leader: Speaker) -> None:
    """Give a new adapter (B = 0) the factor A of another: averaging factors is exact as long as their A agree."""
    theirs = dict(leader.named_parameters())
    for name, parameter in follower.named_parameters():
        if name.endswith(f".{DOWN}.weight"):
            parameter.copy_(theirs[name])


def _origin(name: str, stage: StageConfig, weights: Weights | None) -> str:
    if weights is None:
        return stage.carry.get(name, "teacher")
    going_on = next((origin for origin in ("ema", "generator") if origin in weights), "teacher")
    origin = stage.carry.get(name, going_on if name == "generator" else "teacher")
    if origin != "teacher" and origin not in weights:
        raise UserError(
            f"stage {stage.name!r} carries {name} from {origin!r}, which the stage before does not leave: it must "
            "exist, and keep an average (train.ema) for 'ema'"
        )
    return origin


def _kind(name: str, origin: str, trained: Sequence[str]) -> Kind:
    if name in trained:
        return "trained"
    if name == "target":
        return "target"
    return "lent" if origin == "teacher" else "kept"


def _alone(pipeline: Pipeline, settings: TrainConfig, kind: Kind, told: Told, graphs: Graphs | None) -> NetworkDenoiser:
    """A role with a network of its own; a frozen one uses the teacher's weights, unless it needs another dtype."""
    dtype = dtype_of(pipeline.network) if settings.precision != "bf16" else torch.bfloat16
    if kind == "lent" and dtype == dtype_of(pipeline.network):
        net = alias(pipeline.network)
    elif kind == "trained" and settings.masters != "fp32":
        net = halve(copy.deepcopy(pipeline.network), settings.masters, DTYPES[settings.gradients])
    else:
        net = cast(copy.deepcopy(pipeline.network), torch.float32 if kind in ("trained", "target") else dtype)
    autocast = autocast_of(net, settings.precision, pipeline.told_in)
    denoiser = pipeline.speaking(net, autocast=autocast, scalars=told.scalars, heads=told.heads)
    denoiser.graphs = graphs
    if settings.recomputed and kind in ("trained", "target"):
        denoiser.checkpoint_blocks(settings.recomputed)
    return denoiser


def _shared(
    pipeline: Pipeline,
    net: nn.Module,
    settings: TrainConfig,
    lora: LoRAConfig,
    *,
    told: Mapping[str, Told],
    own: Sequence[str],
    graphs: Graphs | None,
) -> dict[str, AdaptedDenoiser]:
    """Roles with what they are told on one network, those of `own` with an adapter."""
    autocast = autocast_of(net, settings.precision, pipeline.told_in)
    adaptation = Adaptation(lora.rank, lora.alpha, lora.targets, lora.norms)
    shared = SharedNetwork(net, own, adaptation, compute=autocast)
    denoiser = pipeline.speaking(shared.net, autocast=autocast)
    denoiser.graphs, denoiser.acting = graphs, lambda: shared.trainable
    if settings.recomputed:
        shared.checkpoint_blocks(settings.recomputed)
    return {
        name: AdaptedDenoiser(denoiser, shared, name, scalars=one.scalars, heads=one.heads)
        for name, one in told.items()
    }


def _base(network: nn.Module, base: Base, *, alone: bool) -> nn.Module:
    """The teacher's network to put adapters into, in what `base` names; a copy if others read it in another dtype."""
    if is_swapped(network):
        return alias(network)
    if base in QUANTISED:
        return quantise(alias(network), base, next(network.parameters()).device)
    dtype = DTYPES[base]
    return alias(cast(network, dtype)) if alone or dtype_of(network) == dtype else cast(copy.deepcopy(network), dtype)


def _compile(members: Mapping[str, nn.Module], *, every: bool) -> None:
    """Compiles the regions of all networks in place, once nothing more is changed or copied."""
    ends = [layer for module in members.values() if isinstance(module, Discriminator) for layer in module.layers]
    for denoiser in members.values():
        if isinstance(denoiser, Speaker):
            compile_regions(denoiser.net, ends, every=every)
