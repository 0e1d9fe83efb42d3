"""What a denoiser is told besides x_t and t, for a batch of samples; opaque to objectives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of a denoiser, row by row.

    Args:
        size: number of rows (samples).
        batched: argument name -> tensor [size, ...], list of `size` values (rows of different shapes), or a mapping
            of such.
        shared: argument name -> value common to all rows.
        null: what an unconditional call is told, row by row, as the pipeline itself builds it; None if there is
            no such thing.
    """

    size: int
    batched: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    null: "Conditioning | None" = None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name; a mapping may hold batched and shared values."""
        return merged(self.shared, self.batched)

    def index(self, rows: Tensor) -> "Conditioning":
        """The rows at those indices [n], here and in the null twin.

        Of lists, whose values have shapes of their own, the host picks: it waits for indices on a device, once.
        """
        return self._picked(rows, cache(rows.tolist))

    def _picked(self, rows: Tensor, listed: Callable[[], list[int]]) -> "Conditioning":
        def taken(leaf: Any) -> Any:
            return [leaf[row] for row in listed()] if isinstance(leaf, list) else leaf[sent(rows, leaf.device)]

        null = self.null._picked(rows, listed) if self.null is not None else None
        return replace(self, size=len(rows), batched=mapped(self.batched, taken), null=null)

    def to(self, device: torch.device | str) -> "Conditioning":
        """A copy on another device; one in main memory is waited for, since nothing on the CPU would wait for it."""
        null = self.null.to(device) if self.null is not None else None

        def move(x: Any) -> Any:
            if isinstance(x, list | tuple):
                return type(x)(move(item) for item in x)
            return sent(x, device) if isinstance(x, Tensor) else x

        return replace(self, batched=mapped(self.batched, move), shared=mapped(self.shared, move), null=null)

    def dropped(self, null_rows: Tensor) -> "Conditioning":
        """These rows with the null twin's where `null_rows` [size] is true (label dropout)."""
        rows = torch.arange(self.size, device=null_rows.device)
        mixed = Conditioning.cat([self, self.unconditional]).index(rows + self.size * null_rows)
        return replace(mixed, null=self.null)

    @property
    def unconditional(self) -> "Conditioning":
        """The null twin.

        Raises:
            ValueError: the model has no unconditional mode.
        """
        if self.null is None:
            raise ValueError(
                "guidance and label dropout need an unconditional mode, and this model has none: "
                "set guidance to 1, or name the null class with teacher.null_label"
            )
        return self.null

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """Rows one after the other; the null twin is kept when every part has one.

        Sequences of different lengths are padded with zeros at their end, which their masks then exclude.
        """
        nulls = [part.null for part in parts if part.null is not None]
        return Conditioning(
            size=sum(part.size for part in parts),
            batched=_cat([part.batched for part in parts]),
            shared=parts[0].shared,
            null=Conditioning.cat(nulls) if len(nulls) == len(parts) else None,
        )


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; on its way to a GPU, from pinned memory, nothing waits for it."""
    if x.device.type != "cpu":
        return x.to(device)
    if torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Every leaf of nested mappings changed."""
    if isinstance(tree, Mapping):
        return {name: mapped(value, change) for name, value in tree.items()}
    return change(tree)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings united; `over` wins."""
    both = {name for name in base if isinstance(base[name], Mapping) and isinstance(over.get(name), Mapping)}
    return {**base, **over, **{name: merged(base[name], over[name]) for name in both}}


def _cat(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], Mapping):
        return {name: _cat([tree[name] for tree in trees]) for name in trees[0]}
    if isinstance(trees[0], list):
        return [row for tree in trees for row in tree]
    return torch.cat(_padded(list(trees)))


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    """All rows as long as the longest along every axis but the first."""
    longest = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
    padded = []
    for x in tensors:
        missing = [longest[axis] - x.shape[axis + 1] for axis in range(len(longest))]
        padding = [side for amount in reversed(missing) for side in (0, amount)]
        padded.append(torch.nn.functional.pad(x, padding) if any(missing) else x)
    return padded
