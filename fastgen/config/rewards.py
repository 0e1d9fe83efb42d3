"""What generated samples are rewarded for."""

from collections.abc import Mapping
from typing import Any

from pydantic import PlainValidator, ValidationInfo

from ..models.pipelines.rewards import REWARD_KINDS, Weighted
from ..objectives import Needs
from .strict import one_or_several

_several: Any = one_or_several(REWARD_KINDS, "name", Weighted).func


def _built(raw: Any, info: ValidationInfo) -> Weighted | None:
    """One mapping, or a list of them, each with its `weight`; None for no reward."""
    found = None if raw is None else _several([raw] if isinstance(raw, Mapping) else raw, info)
    return found if found is None or isinstance(found, Weighted) else Weighted((found,), (1.0,))


SEVERAL_REWARDS = PlainValidator(_built)


def check_rewarded(stage: str, needs: Needs, rewards: Weighted | None, judges: Weighted | None) -> None:
    """Raises ValueError for an objective without the rewards that it reads, or for rewards that it does not."""
    if needs.rewards and rewards is None:
        raise ValueError(
            f"{stage} trains by rewards and the stage has none: set rewards, such as {{name: clip, path: FOLDER}}, or "
            "{name: FILE.py:Class} of your own"
        )
    if not needs.rewards and (rewards or judges):
        raise ValueError(f"{stage} reads no rewards: remove rewards and judges, or choose an objective that does")
