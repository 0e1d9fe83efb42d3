"""What can be kept of every image: columns by name, each made of a batch and of what models saw in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .images.decode import ImageBatch
from .measures import sliced
from .measures.colour import saturation_and_contrast
from .networks.clip import Clip, Reward
from .networks.extractors import FeatureExtractor, Sight
from .networks.lpips import Lpips


@dataclass(frozen=True, eq=False)
class Eyes:
    """The models that look at images."""

    extractor: FeatureExtractor | None
    clip: Clip | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    lpips: Lpips | None = None


@dataclass(frozen=True, eq=False)
class View:
    """A batch as the models saw it, and the numbers of its images."""

    batch: ImageBatch
    images: Tensor
    sight: Sight | None
    numbers: Sequence[int]
    eyes: Eyes
    seed: int


def _numbers(view: View) -> dict[str, Tensor]:
    return {"numbers": torch.tensor(view.numbers)}


def _features(view: View) -> dict[str, Tensor]:
    return {"features": view.sight.features} if view.sight else {}


def _logits(view: View) -> dict[str, Tensor]:
    return {"logits": view.sight.logits} if view.sight and view.sight.logits is not None else {}


def _labels(view: View) -> dict[str, Tensor]:
    return {} if view.batch.labels is None else {"labels": view.batch.labels}


def _conditions(view: View) -> dict[str, Tensor]:
    return {} if view.batch.conditions is None else {"conditions": view.batch.conditions}


def _colour(view: View) -> dict[str, Tensor]:
    return {"colour": saturation_and_contrast(view.images)}


def _patches(view: View) -> dict[str, Tensor]:
    first = [number < sliced.IMAGES for number in view.numbers]
    if not any(first) or min(view.images.shape[-2:]) < sliced.PATCH:
        return {}
    numbers = [number for number in view.numbers if number < sliced.IMAGES]
    levels = sliced.patches(view.images[torch.tensor(first)], numbers, seed=view.seed)
    return {f"patches_{depth}": level for depth, level in enumerate(levels)}


def _lpips(view: View) -> dict[str, Tensor]:
    """Half precision: there are 31,872 values per image."""
    return {} if view.eyes.lpips is None else {"lpips": view.eyes.lpips(view.images).half()}


def _clip(view: View) -> dict[str, Tensor]:
    if view.eyes.clip is None:
        return {}
    embedding = view.eyes.clip(view.images)
    prompts = view.batch.prompts
    aligned = {} if prompts is None else {"alignment": view.eyes.clip.alignment(embedding, prompts)}
    return {"embedding": embedding, **aligned}


def _rewards(view: View) -> dict[str, Tensor]:
    prompts = view.batch.prompts
    if prompts is None:
        return {}
    return {f"reward_{name}": reward(view.images, prompts).float() for name, reward in view.eyes.rewards.items()}


COLUMNS: Mapping[str, Callable[[View], dict[str, Tensor]]] = {
    "numbers": _numbers,
    "features": _features,
    "logits": _logits,
    "labels": _labels,
    "conditions": _conditions,
    "colour": _colour,
    "patches": _patches,
    "lpips": _lpips,
    "clip": _clip,
    "rewards": _rewards,
}
