"""Hashes of what kept rows depend on: settings and weights, the same in every process."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """A hash in the making."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def digest_of(told: Any, tensors: Mapping[str, Tensor]) -> Digest:
    """A hash of settings and of the tensors that belong to them."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(ordered(told)).encode())
    add(digest, tensors)
    return digest


def add(digest: Digest, tensors: Mapping[str, Tensor]) -> None:
    """Adds names, kinds, shapes and values to a hash."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def ordered(value: Any) -> Any:
    """A value whose parts are in an order that no process chooses anew, as it does of sets."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return sorted((str(name), ordered(entry)) for name, entry in value.items())
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return [ordered(entry) for entry in value] if isinstance(value, list | tuple) else value
