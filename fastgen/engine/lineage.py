"""Who exists in a stage, whose weights each starts from, and what its network is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..config.schema import StageConfig
from ..errors import UserError
from ..models.head_bank import Intervals
from ..models.pipelines.pipeline import Pipeline
from ..objectives import denoisers_of, roles_of

Kind = Literal["trained", "target", "lent", "kept"]
"""What a role's network is: trained, the average of a trained one, the teacher's, or what a stage before left."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Origin ("generator", "ema") -> state dict of the stage before."""


@dataclass(frozen=True)
class Told:
    """What a role can be told beside the time: scalars by embeddings, or intervals by heads."""

    scalars: Sequence[str]
    heads: Intervals | None


@dataclass(frozen=True)
class Lineage:
    """Where a denoiser's role comes from.

    Attributes:
        origin: whose weights it starts from: the teacher's, or a role's of the stage before.
        kind: what its network is.
        told: what it is told.
        like: network that one of its own is a copy of.
    """

    origin: str
    kind: Kind
    told: Told
    like: nn.Module


def kind_of(role: str, origin: str, trained: Sequence[str]) -> Kind:
    """What the network of a denoiser's role is, by whose weights it starts from and which roles are trained."""
    if role in trained:
        return "trained"
    if role == "target":
        return "target"
    return "lent" if origin == "teacher" else "kept"


def is_generators(role: str, origin: str) -> bool:
    """Whether a role's network is of the generator's architecture, which may be another one than the teacher's."""
    return role in ("generator", "target") or origin not in ("teacher", "fake_score")


def lineages(
    pipeline: Pipeline, stage: StageConfig, weights: Weights | None, heads: Intervals | None
) -> dict[str, Lineage]:
    """The lineage of each denoiser that the objective names.

    Args:
        pipeline: the teacher, with what a generator starts from.
        stage: settings of the stage.
        weights: what the stage before left; None leaves the generator to a checkpoint.
        heads: intervals of the generator's heads, where it has some.

    Raises:
        UserError: `carry` names what the stage before does not leave.
    """
    needs, trained, found = stage.objective.needs, roles_of(stage.objective), {}
    for name in denoisers_of(stage.objective):
        origin = _origin(name, stage, weights)
        told = Told(needs.scalars_of(name), heads if name == "generator" else None)
        like = pipeline.start if is_generators(name, origin) else pipeline.network
        found[name] = Lineage(origin, kind_of(name, origin, trained), told, like)
    return found


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
