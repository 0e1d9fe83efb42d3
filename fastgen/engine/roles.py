"""The roles of a stage as networks: each one's own, or an adapter on one that several share."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..config.lora import Base, LoRAConfig, Sharing
from ..config.schema import StageConfig
from ..config.train import TrainConfig
from ..models.adapted import AdaptedDenoiser
from ..models.adapters import Adaptation, SharedNetwork, alias
from ..models.baking import check_bakeable, check_fusible
from ..models.casting import cast, dtype_of
from ..models.denoiser import NetworkDenoiser
from ..models.discriminator import Discriminator
from ..models.graphs import Graphs
from ..models.head_bank import Intervals
from ..models.low_rank import DOWN_KEY
from ..models.masters import halve
from ..models.offload import is_swapped
from ..models.own_backbone import OwnDiscriminator
from ..models.pipelines.perceptual import Perceptual, lpips_network
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.rewards import loaded
from ..models.pipelines.source import DTYPES
from ..models.quantised import quantise
from ..models.regions import compile_regions
from ..models.retargeted import RetargetedDenoiser
from ..models.roles import Roles, put
from ..models.state import STATES
from ..models.walk import Plan
from ..objectives import roles_of
from ..objectives.parts.flow_map import intervals_of
from ..process.retold import ProcessName, retold
from ..seeds import seed_of
from .discriminators import discriminator_of
from .dtypes import QUANTISED, autocast_of
from .frozen import SHARED, frozen_in
from .lineage import Lineage, Weights, lineages

Speaker = NetworkDenoiser | AdaptedDenoiser | RetargetedDenoiser
"""A denoiser that may play a role."""


def build_roles(
    pipeline: Pipeline,
    stage: StageConfig,
    *,
    plan: Plan,
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

    The generator and what starts from it have the architecture of `pipeline.start`, which may not be the teacher's.

    The generator goes on from the stage before (its average if there is one), everyone else starts from the
    teacher, unless `carry` says otherwise. Without `weights` a checkpoint fills them in afterwards.

    Roles that speak another `process` than their networks are retargeted, and the student's stops with them.

    Shared roles act on the tensors of `pipeline.network`, which is cast in place to `base` where all roles share it;
    beside a generator of its own they get a copy if they need another dtype.

    What records calls of the networks is made by `recorder`, where they are recorded.

    Raises:
        UserError: `carry` names a stage before that does not exist, or the network cannot be shared as asked.
    """
    needs, native = stage.objective.needs, pipeline.reading.process
    spoken = retold(process, native)
    plan = plan.on(spoken)
    heads = intervals_of(plan.grids, spoken, needs.heads) if needs.heads else None
    known = lineages(pipeline, stage, weights, heads)
    graphs = recorder() if _is_recorded(stage, pipeline) else None
    together = {name: one for name, one in known.items() if name in SHARED[sharing]}
    apart = {name: one for name, one in known.items() if name not in together}
    denoisers = _alone(pipeline, stage, apart, graphs, seed=seed)
    if together:
        net = _base(pipeline.network, base, alone=sharing == "lora")
        denoisers |= _shared(pipeline, net, stage, together, lora or LoRAConfig(), graphs, seed=seed)
    _begin(denoisers, known, weights or {}, follows=needs.follows)
    if spoken is not native:
        denoisers = {name: RetargetedDenoiser(model, spoken) for name, model in denoisers.items()}
    members = _members(pipeline, stage, denoisers, seed=seed)
    plan = plan.telling(needs.scalars_of("generator"), guidance=guidance)
    _check_exportable(denoisers["generator"], plan, heads)
    lent = [name for name, one in known.items() if one.kind == "lent"]
    return Roles(members, plan, frozen=_frozen(members, stage, sharing), borrowed=lent)


def _is_recorded(stage: StageConfig, pipeline: Pipeline) -> bool:
    """Whether calls become graphs, which have no second derivative and always find their weights in one place."""
    return stage.train.graphed and not (stage.objective.needs.second_derivative or is_swapped(pipeline.network))


def _begin(denoisers: Mapping[str, Speaker], known: Mapping[str, Lineage], weights: Weights, *, follows: bool) -> None:
    """Fills in what the stage before left, and what one role has from another."""
    for name, one in known.items():
        if one.origin in weights:
            put(denoisers[name], weights[one.origin])
    if follows and known["fake_score"].origin == "teacher":
        _begin_alike(denoisers["fake_score"], denoisers["generator"])
    if "target" in denoisers:
        denoisers["target"].load_state_dict(denoisers["generator"].state_dict())


def _members(
    pipeline: Pipeline, stage: StageConfig, denoisers: Mapping[str, Speaker], *, seed: int
) -> dict[str, nn.Module]:
    """The denoisers, compiled where they are to be, and whoever else the objective asks for."""
    needs, members = stage.objective.needs, dict[str, nn.Module](denoisers)
    torch.manual_seed(seed_of(seed, stage.name, "discriminator"))
    if "discriminator" in roles_of(stage.objective):
        members["discriminator"] = discriminator_of(pipeline, denoisers, stage)
    if stage.train.compile:
        every = stage.train.compile == "all"
        _compile(members, every=every, levels=every and stage.train.gradient_checkpointing is False)
    device = next(pipeline.network.parameters()).device
    members |= {name: STATES[name]().to(device) for name in needs.states}
    if needs.lpips:
        members["lpips"] = Perceptual(pipeline.codec, lpips_network().to(device))
    if needs.rewards:
        members["rewards"] = loaded(stage.rewards, stage.judges, pipeline.codec, device)
    return members


def _check_exportable(generator: Speaker, plan: Plan, heads: Intervals | None) -> None:
    """Raises UserError for a generator of which no stock network can be made with what it is told."""
    if heads is not None:
        check_fusible(generator)
    if plan.scalars:
        check_bakeable(generator, stops=len(plan.scalars))


def _frozen(members: Mapping[str, nn.Module], stage: StageConfig, sharing: Sharing) -> dict[str, frozenset[str]]:
    """Names of the parameters of each trained role that stay as they are."""
    frozen = {name: frozen_in(name, members[name], stage, sharing) for name in roles_of(stage.objective)}
    if isinstance(judge := members.get("discriminator"), OwnDiscriminator):
        frozen["discriminator"] |= judge.unread
    return frozen


@torch.no_grad()
def _begin_alike(follower: Speaker, leader: Speaker) -> None:
    """Give a new adapter (B = 0) the factor A of another: averaging factors is exact as long as their A agree."""
    theirs = dict(leader.named_parameters())
    for name, parameter in follower.named_parameters():
        if name.endswith(DOWN_KEY):
            parameter.copy_(theirs[name])


def _alone(
    pipeline: Pipeline,
    stage: StageConfig,
    known: Mapping[str, Lineage],
    graphs: Graphs | None,
    *,
    seed: int,
) -> dict[str, Speaker]:
    """Roles with a network each."""
    torch.manual_seed(seed_of(seed, stage.name, "embeddings"))
    return {name: _with_network(pipeline, stage.train, one, graphs) for name, one in known.items()}


def _with_network(
    pipeline: Pipeline, settings: TrainConfig, lineage: Lineage, graphs: Graphs | None
) -> NetworkDenoiser:
    """A role with a network of its own; a frozen one uses the teacher's weights, unless it needs another dtype."""
    dtype = dtype_of(pipeline.network) if settings.precision != "bf16" else torch.bfloat16
    if lineage.kind == "lent" and dtype == dtype_of(pipeline.network):
        net = alias(pipeline.network)
    else:
        net = copy.deepcopy(lineage.like).to(next(pipeline.network.parameters()).device)
        if lineage.kind == "trained" and settings.masters != "fp32":
            net = halve(net, settings.masters, DTYPES[settings.gradients])
        else:
            net = cast(net, torch.float32 if lineage.kind in ("trained", "target") else dtype)
    autocast = autocast_of(net, settings.precision, pipeline.told_in)
    denoiser = pipeline.speaking(net, autocast=autocast, scalars=lineage.told.scalars, heads=lineage.told.heads)
    denoiser.graphs = graphs
    if settings.recomputed and lineage.kind in ("trained", "target"):
        denoiser.checkpoint_blocks(settings.recomputed)
    return denoiser


def _shared(
    pipeline: Pipeline,
    net: nn.Module,
    stage: StageConfig,
    known: Mapping[str, Lineage],
    lora: LoRAConfig,
    graphs: Graphs | None,
    *,
    seed: int,
) -> dict[str, Speaker]:
    """Roles on one network, all but the teacher with an adapter each."""
    torch.manual_seed(seed_of(seed, stage.name, "adapters"))
    own = [name for name, one in known.items() if one.kind != "lent"]
    autocast = autocast_of(net, stage.train.precision, pipeline.told_in)
    adaptation = Adaptation(lora.rank, lora.alpha, lora.targets, lora.norms)
    shared = SharedNetwork(net, own, adaptation, compute=autocast)
    denoiser = pipeline.speaking(shared.net, autocast=autocast)
    denoiser.graphs, denoiser.acting = graphs, lambda: shared.trainable
    if stage.train.recomputed:
        shared.checkpoint_blocks(stage.train.recomputed)
    return {
        name: AdaptedDenoiser(denoiser, shared, name, scalars=one.told.scalars, heads=one.told.heads)
        for name, one in known.items()
    }


def _base(network: nn.Module, base: Base, *, alone: bool) -> nn.Module:
    """The teacher's network to put adapters into, in what `base` names; a copy if others read it in another dtype."""
    if is_swapped(network):
        return alias(network)
    if base in QUANTISED:
        return quantise(alias(network), base, next(network.parameters()).device)
    dtype = DTYPES[base]
    return alias(cast(network, dtype)) if alone or dtype_of(network) == dtype else cast(copy.deepcopy(network), dtype)


def _compile(members: Mapping[str, nn.Module], *, every: bool, levels: bool) -> None:
    """Compiles the regions of all networks in place, once nothing more is changed or copied."""
    ends = [layer for module in members.values() if isinstance(module, Discriminator) for layer in module.layers]
    for denoiser in members.values():
        if isinstance(denoiser, Speaker):
            compile_regions(denoiser.net, ends, every=every, levels=levels)
