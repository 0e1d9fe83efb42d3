"""What a denoiser is told besides x_t and t, for a batch of samples; opaque to objectives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of a denoiser, row by row.

    Args:
        size: number of rows (samples).
        batched: argument name -> tensor [size, ...], or a mapping of such.
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
        return {**self.shared, **self.batched}

    def map(self, change: Callable[[Tensor], Tensor], *, size: int | None = None) -> "Conditioning":
        """Every batched tensor changed, here and in the null twin."""
        null = self.null.map(change, size=size) if self.null is not None else None
        size = self.size if size is None else size
        return replace(self, size=size, batched=_map(self.batched, change), null=null)

    def index(self, rows: Tensor) -> "Conditioning":
        """The rows at those indices [n]."""
        return self.map(lambda x: x[rows.to(x.device)], size=len(rows))

    def to(self, device: torch.device | str) -> "Conditioning":
        null = self.null.to(device) if self.null is not None else None

        def move(x: Any) -> Any:
            return x.to(device) if isinstance(x, Tensor) else x

        return replace(self, batched=_map(self.batched, move), shared=_map(self.shared, move), null=null)

    def dropped(self, null_rows: Tensor) -> "Conditioning":
        """These rows with the null twin's where `null_rows` [size] is true (label dropout)."""
        rows = torch.arange(self.size, device=null_rows.device)
        return Conditioning.cat([self, self.unconditional]).index(rows + self.size * null_rows)

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
        """Rows one after the other; the null twin is kept when every part has one."""
        nulls = [part.null for part in parts if part.null is not None]
        return Conditioning(
            size=sum(part.size for part in parts),
            batched=_cat([part.batched for part in parts]),
            shared=parts[0].shared,
            null=Conditioning.cat(nulls) if len(nulls) == len(parts) else None,
        )


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _map(value, change) for name, value in tree.items()}
    return change(tree)


def _cat(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], Mapping):
        return {name: _cat([tree[name] for tree in trees]) for name in trees[0]}
    return torch.cat(list(trees))
