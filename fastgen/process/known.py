"""What is known of a tensor of times: a level that many ask for is computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Speaker = TypeVar("Speaker")
Level = Callable[[Speaker, Tensor], Tensor]


@dataclass(frozen=True)
class _Noted:
    """Tensors, and how often each had been written to when they were noted."""

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, *tensors: Tensor) -> "_Noted":
        return cls(tensors, tuple(tensor._version for tensor in tensors))

    @property
    def holds(self) -> bool:
        return self.versions == tuple(tensor._version for tensor in self.tensors)


_LEVELS: Any = WeakIdKeyDictionary()
"""Tensor of times -> (speaker, which level) -> the level and the version of the times; forgotten with the times."""
_PARTS: Any = WeakIdKeyDictionary()
"""Tensor of times -> the tensors that it was joined of, and its version."""


def once(level: Level[Speaker]) -> Level[Speaker]:
    """Remembers the level [...] that a method gave for a tensor of times, so that it is computed once.

    Where times or level were written to since, it is computed afresh. Nothing is kept of times that are differentiated.
    """

    @wraps(level)
    def asked(speaker: Speaker, t: Tensor) -> Tensor:
        if not _lasts(t):
            return level(speaker, t)
        known, key = _LEVELS.setdefault(t, {}), (speaker, level)
        version, noted = known.get(key, (None, None))
        if version == t._version and noted.holds:
            value: Tensor = noted.tensors[0]
            return value
        parts = _parts(t)
        value = torch.cat([asked(speaker, part) for part in parts]) if parts else level(speaker, t)
        if value is not t:  # a level that is its own times would keep them alive
            known[key] = (t._version, _Noted.of(value))
        return value

    return asked


def joined(times: Sequence[Tensor]) -> Tensor:
    """Times one after the other [n]; what is known of the parts is known of them."""
    whole = torch.cat(list(times))
    if all(map(_lasts, (whole, *times))):
        _PARTS[whole] = (whole._version, _Noted.of(*times))
    return whole


def _parts(t: Tensor) -> tuple[Tensor, ...]:
    version, noted = _PARTS.get(t, (None, None))
    return noted.tensors if version == t._version and noted.holds else ()


def _lasts(t: Tensor) -> bool:
    """Whether what is computed of times is theirs for good: no graph, transform or mode has a part in it."""
    transformed = torch._C._are_functorch_transforms_active()
    return type(t) is Tensor and not (t.requires_grad or t.is_inference() or transformed)
