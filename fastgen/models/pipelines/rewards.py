"""The rewards that a config may name, and what loads them beside a pipeline's autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from ...plugins import Kinds
from ...user_file import short
from ..rewards import Rewards, Scorer
from .clip_reward import ClipReward
from .codec import Codec


@runtime_checkable
class Reward(Protocol):
    """The settings of a reward, a frozen dataclass."""

    def load(self, device: torch.device) -> Scorer:
        """What scores, with its networks on the device, frozen."""
        ...


REWARDS: dict[str, type[Any]] = {"clip": ClipReward}
REWARD_KINDS = Kinds[Reward]("reward", REWARDS, group="fastgen.rewards", members=("load",))


@dataclass(frozen=True)
class Weighted:
    """Several rewards, and how much of each is wanted.

    Args:
        parts: their settings.
        weights: one for each, above 0; only their proportions matter.
    """

    parts: tuple[Reward, ...]
    weights: tuple[float, ...]

    def load(self, device: torch.device) -> Mapping[str, Scorer]:
        """What scores by name; rewards of the same name are numbered."""
        names = [short(REWARD_KINDS.origin(type(part)).name) for part in self.parts]
        told = [f"{name}_{i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        return {name: part.load(device) for name, part in zip(told, self.parts, strict=True)}


def loaded(rewards: Weighted, judges: Weighted | None, codec: Codec, device: torch.device) -> Rewards:
    """The role that scores samples: decoded by the pipeline's own autoencoder, judged by what the config names."""
    watching = {} if judges is None else judges.load(device)
    scorers = rewards.load(device)
    both = {name for name in watching if name in scorers}
    told = {f"judge_{name}" if name in both else name: judge for name, judge in watching.items()}
    return Rewards(codec.images_of, scorers, rewards.weights, told).to(device)
