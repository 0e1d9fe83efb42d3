"""Which arguments of a denoiser have a row per sample, learnt by asking for two samples and for three."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .conditioning import Conditioning


@dataclass(frozen=True)
class Layout:
    """Where each argument keeps its rows.

    Args:
        axes: path of an argument ("added_cond_kwargs.time_ids") -> axis of its rows, None for a list of rows;
            arguments that are not listed are shared by all rows.
        masks: argument that a pipeline leaves out where nothing is padded -> the argument whose tokens it masks,
            and the mask's dtype.
    """

    axes: Mapping[str, int | None] = field(default_factory=dict)
    masks: Mapping[str, tuple[str, torch.dtype]] = field(default_factory=dict)

    @classmethod
    def learnt(cls, two: Mapping[str, Any], three: Mapping[str, Any]) -> "Layout":
        """From the arguments of a call for two samples of different length and of one for three.

        The third sample repeats the first, so that only the number of rows differs.
        """
        leaves, more = flat(two), flat(three)
        axes = {path: axis for path in leaves if (axis := _row_axis(leaves[path], more.get(path))) != _SHARED}
        return cls(axes)

    def with_masks(self, alone: Mapping[str, Any], together: Mapping[str, Any]) -> "Layout":
        """Also knows the masks that are there when prompts of different length are asked for together only."""
        tokens = {name: x.shape[:2] for name, x in together.items() if isinstance(x, Tensor) and x.ndim == 3}
        masks = {
            name: (covered, together[name].dtype)
            for name in together.keys() - alone.keys()
            for covered, shape in tokens.items()
            if isinstance(together[name], Tensor) and together[name].shape == shape
        }
        return Layout(self.axes, masks)

    def conditioning(self, arguments: Mapping[str, Any], rows: int) -> Conditioning:
        """The arguments as rows, each with its first axis over the samples."""
        leaves = dict(flat(arguments))
        for mask, (covered, dtype) in self.masks.items():
            if mask not in leaves:
                leaves[mask] = leaves[covered].new_ones(leaves[covered].shape[:2], dtype=dtype)
        batched = {path: _rows_first(leaf, self.axes[path]) for path, leaf in leaves.items() if path in self.axes}
        shared = {path: leaf for path, leaf in leaves.items() if path not in self.axes}
        return Conditioning(rows, tree(batched), tree(shared))

    def arguments(self, cond: Conditioning) -> dict[str, Any]:
        """The inverse of `conditioning`: keyword arguments as the denoiser takes them."""
        moved = {name: axis for name, axis in self.axes.items() if axis}
        told = cond.kwargs
        return {**told, **{name: told[name].movedim(0, axis) for name, axis in moved.items() if name in told}}


_SHARED = -1


def _row_axis(two: Any, three: Any) -> int | None:
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.ndim == three.ndim:
        for axis in range(two.ndim):
            if (two.shape[axis], three.shape[axis]) == (2, 3):
                return axis
    if isinstance(two, list) and isinstance(three, list) and (len(two), len(three)) == (2, 3):
        return None
    return _SHARED


def _rows_first(leaf: Any, axis: int | None) -> Any:
    return leaf.movedim(axis, 0) if axis else list(leaf) if axis is None else leaf


def same(a: Conditioning, b: Conditioning) -> bool:
    """Whether the rows of two conditionings say the same, up to rounding; what they share is not looked at."""
    ours, theirs = flat(a.batched), flat(b.batched)
    if ours.keys() != theirs.keys():
        return False
    pairs = [(tree_leaves(ours[path]), tree_leaves(theirs[path])) for path in ours]
    return all(len(xs) == len(ys) and all(map(_alike, xs, ys)) for xs, ys in pairs)


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.allclose(x, y)
    return type(x) is type(y) and x == y


def flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted paths."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves.update(flat(value, f"{path}{name}."))
        else:
            leaves[path + name] = value
    return leaves


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from dotted paths, the inverse of `flat`."""
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested
