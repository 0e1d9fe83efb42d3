"""What generated samples are rewarded for."""

from typing import Any

from pydantic import PlainValidator, ValidationInfo

from ..models.pipelines.rewards import REWARD_KINDS, Weighted
from .strict import one_or_several

_several: Any = one_or_several(REWARD_KINDS, "name", Weighted).func


def _built(raw: Any, info: ValidationInfo) -> Weighted | None:
    """One mapping, or a list of them, each with its `weight`; None for no reward."""
    found = None if raw is None else _several(raw, info)
    return found if found is None or isinstance(found, Weighted) else Weighted((found,), (1.0,))


SEVERAL_REWARDS = PlainValidator(_built)
