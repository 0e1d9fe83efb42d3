"""Putting saved tensors back: strict state dicts of modules, bit-exact states of optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.owned import Owned, Place
from ..models.sharding import Slice, load
from .eight_bits import BLOCK, SCALES, blocks_of

_SHOWN = 10  # differences an error spells out


@dataclass(frozen=True)
class OptimizerSnapshot:
    """The state of a torch optimizer, detached from it.

    Attributes:
        tensors: "<parameter index>.<state name>" -> tensor on the CPU; indices count through all groups.
        groups: JSON, one entry per group: its `settings` (lr, betas ...) and, per parameter, its `shape` and
            the `scalars` of its state (Python numbers, booleans, None).
    """

    tensors: dict[str, Tensor]
    groups: list[dict[str, Any]]


def optimizer_snapshot(optimizer: torch.optim.Optimizer) -> OptimizerSnapshot:
    """Copy an optimizer's state to the CPU, every value with its own type.

    Raises:
        TypeError: a state or setting is neither a tensor nor plain JSON (L-BFGS keeps lists of tensors).
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[int, dict[str, Any]] = {}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in packed["state"].items():
        scalars[index] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = _saved(value, stepped[index])
            else:
                scalars[index][name] = _scalar(value)
    groups = [
        {
            "settings": {name: _setting(value) for name, value in group.items() if name != "params"},
            "parameters": [
                {"shape": list(parameter.shape), "scalars": scalars.get(index, {})}
                for index, parameter in zip(group["params"], live["params"], strict=True)
            ],
        }
        for group, live in zip(packed["param_groups"], optimizer.param_groups, strict=True)
    ]
    return OptimizerSnapshot(tensors, groups)


def restore_optimizer(optimizer: torch.optim.Optimizer, snapshot: OptimizerSnapshot) -> None:
    """Put a snapshot back, bit for bit; its settings (lr ...) win over the optimizer's.

    Raises:
        CheckpointError: another number of parameters, or other shapes; the optimizer is unchanged.
    """
    _check_fits([[list(p.shape) for p in group["params"]] for group in optimizer.param_groups], snapshot)
    packed = optimizer.state_dict()
    records = [record for group in snapshot.groups for record in group["parameters"]]
    state: dict[int, dict[str, Any]] = {
        index: dict(record["scalars"]) for index, record in enumerate(records) if record["scalars"]
    }
    for index, values in _by_parameter(snapshot.tensors).items():
        state.setdefault(index, {}).update({name: tensor.clone() for name, tensor in values.items()})
    groups = [
        _restored_settings(live, saved["settings"])
        for live, saved in zip(packed["param_groups"], snapshot.groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _undo_casts(optimizer, state)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Load a state dict strictly: the same keys and shapes, and no dtype that would round.

    Args:
        module: receives the values in its own dtypes and devices; a wider dtype than the saved one is fine.
        tensors: key -> tensor, as in `module.state_dict()`.
        what: how an error calls the module, such as "generator".

    Raises:
        CheckpointError: naming missing, unexpected and unfitting keys; the module is unchanged.
    """
    wanted = module.state_dict()
    faults = {
        "missing": [key for key in wanted if key not in tensors],
        "unexpected": [key for key in tensors if key not in wanted],
        "wrong shape": [
            f"{key} (checkpoint {list(tensors[key].shape)}, module {list(value.shape)})"
            for key, value in wanted.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
        "wrong dtype": [
            f"{key} (checkpoint {tensors[key].dtype}, module {value.dtype})"
            for key, value in wanted.items()
            if key in tensors and _rounds(tensors[key].dtype, value.dtype)
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{fault}: {_listed(keys)}" for fault, keys in faults.items() if keys)
        raise CheckpointError(
            f"the checkpoint does not fit the {what}: {found}. Resume with the config that wrote it (same "
            f"architecture, rank and dtype), or start in another output folder"
        )
    load(module, tensors)


def in_pieces(snapshot: OptimizerSnapshot, parts: Owned) -> OptimizerSnapshot:
    """The state of an optimizer of the owned tensors as that of one of the parameters, which checkpoints hold."""
    (group,), states = snapshot.groups, _by_parameter(snapshot.tensors)
    tensors: dict[str, Tensor] = {}
    records = []
    for number, place in enumerate(parts.places.values()):
        whole = parts.tensors[place.tensor]
        for name, value in states.get(place.tensor, {}).items():
            tensors[f"{number}.{name}"] = _cut(name, value, place, whole.shape)
        records.append({**group["parameters"][place.tensor], "shape": list(place.whole)})
    return OptimizerSnapshot(tensors, [{**group, "parameters": records}])


def put_together(snapshot: OptimizerSnapshot, parts: Owned) -> OptimizerSnapshot:
    """The inverse; where the parameters of one tensor were stepped differently often, the most counts.

    Raises:
        CheckpointError: another number of parameters, or other shapes.
    """
    _check_fits([[list(place.whole) for place in parts.places.values()]], snapshot)
    (group,), states = snapshot.groups, _by_parameter(snapshot.tensors)
    tensors: dict[str, Tensor] = {}
    records: dict[int, dict[str, Any]] = {}
    for number, place in enumerate(parts.places.values()):
        whole = parts.tensors[place.tensor]
        records[place.tensor] = {**group["parameters"][number], "shape": list(whole.shape)}
        for name, value in states.get(number, {}).items():
            key = f"{place.tensor}.{name}"
            if name.endswith(SCALES):
                scales = tensors.setdefault(key, value.new_zeros(blocks_of(whole.numel())))
                place.blocks(scales, BLOCK).copy_(value)
            elif value.shape == place.whole:
                place.part(tensors.setdefault(key, value.new_zeros(whole.shape))).copy_(place.cut(value))
            else:
                tensors[key] = torch.maximum(tensors.get(key, value), value)
    ordered = [records[index] for index in range(len(parts.tensors))]
    return OptimizerSnapshot(tensors, [{**group, "parameters": ordered}])


def _saved(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of a state on the CPU, or a slice of a whole one where the parameter is sharded."""
    if isinstance(parameter, Slice) and value.shape == parameter.shape:
        return parameter.sharded(value)
    return value.detach().to("cpu", copy=True)


def _cut(name: str, value: Tensor, place: Place, whole: torch.Size) -> Tensor:
    """A parameter's part of a state of its tensor; a count, of which there is one, is that of every parameter."""
    if name.endswith(SCALES):
        return place.blocks(value, BLOCK)
    return place.part(value) if value.shape == whole else value


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The states of each parameter by name."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        found.setdefault(int(index), {})[name] = value
    return found


def _check_fits(live: list[list[list[int]]], snapshot: OptimizerSnapshot) -> None:
    differences = _differences(live, [[record["shape"] for record in group["parameters"]] for group in snapshot.groups])
    if differences:
        raise CheckpointError(
            f"the optimizer state in the checkpoint is for other parameters: {_listed(differences)}. Resume "
            f"with the config that wrote it, or start in another output folder"
        )


def _differences(live: list[list[list[int]]], saved: list[list[list[int]]]) -> list[str]:
    """What distinguishes the shapes of two optimizers' parameters, group by group."""
    if len(live) != len(saved):
        return [f"the checkpoint has {len(saved)} parameter groups, the optimizer {len(live)}"]
    differences = [
        f"group {group} has {len(theirs)} parameters in the checkpoint, {len(ours)} in the optimizer"
        for group, (theirs, ours) in enumerate(zip(saved, live, strict=True))
        if len(theirs) != len(ours)
    ]
    pairs = zip(_flat(saved), _flat(live), strict=False)
    differences += [
        f"parameter {index} is {theirs} in the checkpoint, {ours} in the optimizer"
        for index, (theirs, ours) in enumerate(pairs)
        if theirs != ours
    ]
    return differences


def _flat(groups: Iterable[list[list[int]]]) -> list[list[int]]:
    return [shape for group in groups for shape in group]


def _restored_settings(live: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    typed = {name: _typed_like(live[name], value) if name in live else value for name, value in saved.items()}
    return {**live, **typed}


def _undo_casts(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Give states back their dtype, which `load_state_dict` changes to that of the parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        loaded = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor) and name in loaded and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def _setting(value: Any) -> Any:
    """A setting of a group as JSON holds it; a learning rate may be a tensor, betas a tuple of them."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_setting(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an optimizer keeps a {type(value).__name__}, which a checkpoint cannot store exactly")


def _typed_like(live: Any, saved: Any) -> Any:
    """A setting from JSON in the type of the live one: tensors and tuples become such again."""
    if isinstance(live, Tensor):
        return torch.as_tensor(saved, dtype=live.dtype, device=live.device)
    if isinstance(live, tuple):
        return tuple(_typed_like(one, other) for one, other in zip(live, saved, strict=True))
    return saved


def _rounds(saved: torch.dtype, live: torch.dtype) -> bool:
    """Whether values of dtype `saved` cannot all be held exactly by `live`."""
    if saved == live:
        return False
    if not (saved.is_floating_point and live.is_floating_point):
        return True
    theirs, ours = torch.finfo(saved), torch.finfo(live)
    return ours.eps > theirs.eps or ours.max < theirs.max


def _listed(items: list[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more ({len(items)} in all)" if rest > 0 else "")
