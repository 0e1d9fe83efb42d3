"""Which arguments of a denoiser have rows for each sample, learnt by asking for two samples and for three."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        several: paths of arguments with the same number of rows for each sample, one after the other: of a video's
            frames, for example.
        lists: path of a list or tuple whose entries are arguments of their own ("layers" of "layers.0") -> its type.
    """

    axes: Mapping[str, int | None] = field(default_factory=dict)
    masks: Mapping[str, tuple[str, torch.dtype]] = field(default_factory=dict)
    several: frozenset[str] = frozenset()
    lists: Mapping[str, type] = field(default_factory=dict)

    @classmethod
    def learnt(cls, two: Mapping[str, Any], three: Mapping[str, Any]) -> "Layout":
        """Finds the layout in the arguments of a call for two samples of different length and of a call for three.

        The third sample repeats the first, so that only the number of rows differs.

        Raises:
            ValueError: an argument depends on the number of samples, and not by rows.
        """
        lists: dict[str, type] = {}
        pairs = list(_pairs(two, three, "", lists))
        axes = {path: axis for path, a, b in pairs if (axis := _row_axis(path, a, b)) != _SHARED}
        several = {path for path, a, _ in pairs if axes.get(path) is not None and a.shape[axes[path]] > 2}
        return cls(axes, several=frozenset(several), lists=lists)

    def with_masks(self, alone: Mapping[str, Any], together: Mapping[str, Any]) -> "Layout":
        """The layout with the masks that are given only when prompts of different length are asked for together."""
        tokens = {name: x.shape[:2] for name, x in together.items() if isinstance(x, Tensor) and x.ndim == 3}
        masks = {
            name: (covered, together[name].dtype)
            for name in together.keys() - alone.keys()
            for covered, shape in tokens.items()
            if isinstance(together[name], Tensor) and together[name].shape == shape
        }
        return replace(self, masks=masks)

    def conditioning(self, arguments: Mapping[str, Any], rows: int) -> Conditioning:
        """The arguments as rows, each with its first axis over the samples."""
        leaves = flat(self._opened(arguments))
        for mask, (covered, dtype) in self.masks.items():
            if mask not in leaves:
                leaves[mask] = leaves[covered].new_ones(leaves[covered].shape[:2], dtype=dtype)
        batched = {path: self._rows_first(path, leaf, rows) for path, leaf in leaves.items() if path in self.axes}
        shared = {path: leaf for path, leaf in leaves.items() if path not in self.axes}
        return Conditioning(rows, tree(batched), tree(shared))

    def arguments(self, cond: Conditioning) -> dict[str, Any]:
        """The inverse of `conditioning`: keyword arguments as the denoiser takes them."""
        leaves = {path: self._as_told(path, leaf) for path, leaf in flat(cond.kwargs).items()}
        told: dict[str, Any] = self._closed(tree(leaves))
        return told

    def _rows_first(self, path: str, leaf: Any, rows: int) -> Any:
        axis = self.axes[path]
        if axis is None:
            return list(leaf)
        moved = leaf.movedim(axis, 0)
        return moved.unflatten(0, (rows, -1)) if path in self.several else moved

    def _as_told(self, path: str, leaf: Any) -> Any:
        axis = self.axes.get(path)
        if axis is None:
            return leaf
        return (leaf.flatten(0, 1) if path in self.several else leaf).movedim(0, axis)

    def _opened(self, value: Any, path: str = "") -> Any:
        """Lists of arguments as mappings by place."""
        if path in self.lists:
            value = {str(place): entry for place, entry in enumerate(value)}
        if isinstance(value, Mapping):
            return {name: self._opened(entry, _below(path, name)) for name, entry in value.items()}
        return value

    def _closed(self, value: Any, path: str = "") -> Any:
        """The inverse of `_opened`."""
        if not isinstance(value, Mapping):
            return value
        entries = {name: self._closed(entry, _below(path, name)) for name, entry in value.items()}
        return self.lists[path](entries[str(place)] for place in range(len(entries))) if path in self.lists else entries


_SHARED = -1
_COMPARED = (Tensor, Sequence, int, float, type(None))  # what else an argument may be has no value to compare


def _pairs(two: Any, three: Any, path: str, lists: dict[str, type]) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of both calls by path; lists of as many entries in both, tensors among them, are noted and opened."""
    if isinstance(two, list | tuple) and type(two) is type(three) and len(two) == len(three) and _holds_tensors(two):
        lists[path] = type(two)
        two, three = (dict(enumerate(entries)) for entries in (two, three))
    if isinstance(two, Mapping) and isinstance(three, Mapping):
        for name in {**two, **three}:
            yield from _pairs(two.get(name), three.get(name), _below(path, str(name)), lists)
    else:
        yield path, two, three


def _holds_tensors(entries: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(entries))


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _row_axis(path: str, two: Any, three: Any) -> int | None:
    """The axis of the rows, None for a list of them, or `_SHARED`.

    Raises:
        ValueError: none of these.
    """
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.ndim == three.ndim:
        for axis, (few, more) in enumerate(zip(two.shape, three.shape, strict=True)):
            if (few, more) == (2, 3) or (3 * few == 2 * more > 0 and _repeats_the_first(two, three, axis)):
                return axis
    if isinstance(two, list) and isinstance(three, list) and (len(two), len(three)) == (2, 3):
        return None
    if _told_alike(two, three):
        return _SHARED
    forms = _form(two), _form(three)
    if forms[0] == forms[1]:
        raise ValueError(f"{path}, {forms[0]}, has other values for three samples than for two")
    raise ValueError(f"{path} is {forms[0]} for two samples and {forms[1]} for three")


def _repeats_the_first(two: Tensor, three: Tensor, axis: int) -> bool:
    """Whether three samples have the rows of two, and then those of the first again."""
    again = torch.cat([two, two.narrow(axis, 0, two.shape[axis] // 2)], dim=axis)
    return again.shape == three.shape and torch.allclose(again.float(), three.float(), rtol=1e-2, atol=1e-2)


def _form(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"a tensor of {list(leaf.shape)}"
    return f"a {type(leaf).__name__} of {len(leaf)}" if isinstance(leaf, Sequence) else repr(leaf)


def same(a: Conditioning, b: Conditioning) -> bool:
    """Whether the rows of two conditionings say the same, up to rounding; what they share is not looked at."""
    ours, theirs = flat(a.batched), flat(b.batched)
    if ours.keys() != theirs.keys():
        return False
    pairs = [(tree_leaves(ours[path]), tree_leaves(theirs[path])) for path in ours]
    return all(len(xs) == len(ys) and all(map(_alike, xs, ys)) for xs, ys in pairs)


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The paths at which nested arguments are not the same, up to rounding."""
    one, other = flat(ours), flat(theirs)
    return [path for path in sorted({*one, *other}) if not _told_alike(one.get(path), other.get(path))]


def _told_alike(x: Any, y: Any) -> bool:
    return _alike(x, y) or (type(x) is type(y) and not isinstance(x, _COMPARED))


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.allclose(x, y, equal_nan=True)
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
