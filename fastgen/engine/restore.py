"""States of optimizers: taken apart for a checkpoint, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.owned import Owned, Place
from ..models.sharding import Slice
from .eight_bits import BLOCK, CODES, SCALES, blocks_of
from .fitting import UnfitError, listed

NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What states are kept in that are no codes."""


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


NO_OPTIMIZER: dict[str, Any] = {"groups": [], "updates": 0}
"""What a checkpoint says of a role that it has no optimizer of."""


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
        UnfitError: another number of parameters, or other shapes; the optimizer is unchanged.
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
    """The state of an optimizer of the parameters as that of one of the owned tensors; the inverse of `in_pieces`.

    Where the parameters of one tensor were stepped differently often, the most counts.

    Raises:
        UnfitError: another number of parameters, or other shapes.
    """
    _check_fits([[list(place.whole) for place in parts.places.values()]], snapshot)
    _check_states([place.whole for place in parts.places.values()], snapshot.tensors)
    (group,), states = snapshot.groups, _by_parameter(snapshot.tensors)
    tensors: dict[str, Tensor] = {}
    records: dict[int, dict[str, Any]] = {}
    for number, place in enumerate(parts.places.values()):
        whole = parts.tensors[place.tensor]
        records[place.tensor] = {**group["parameters"][number], "shape": list(whole.shape)}
        for name, value in states.get(number, {}).items():
            key = f"{place.tensor}.{name}"
            tensors[key] = _joined(tensors.get(key), f"{number}.{name}", value, place, whole)
    ordered = [records[index] for index in range(len(parts.tensors))]
    return OptimizerSnapshot(tensors, [{**group, "parameters": ordered}])


def _joined(held: Tensor | None, name: str, value: Tensor, place: Place, whole: Tensor) -> Tensor:
    """A state of an owned tensor with a parameter's part in it; the inverse of `_cut`.

    Args:
        held: the state as it was, of which the part is written in place; None where no parameter came before.
        name: name of the part.
        value: the part, or a count, of which the largest is kept.
        place: where the parameter lies.
        whole: the owned tensor.

    Raises:
        UnfitError: of another number of blocks.
    """
    if name.endswith(SCALES):
        held = value.new_zeros(blocks_of(whole.numel())) if held is None else held
        blocks = place.blocks(held, BLOCK)
        if blocks.shape != value.shape:
            raise UnfitError("optimizer", f"{name} is {list(value.shape)}, not {list(blocks.shape)}")
        blocks.copy_(value)
        return held
    if value.shape == place.whole:
        held = value.new_zeros(whole.shape) if held is None else held
        place.part(held).copy_(place.cut(value))
        return held
    return value if held is None else torch.maximum(held, value)


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
        raise UnfitError("optimizer", f"its state is for other parameters: {listed(differences)}")


def _check_states(shapes: Sequence[torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Each state is of a parameter that there is: as large as it, one number for a block of it, or a single one."""
    faults = []
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(shapes) and name):
            faults.append(f"{key} belongs to none of {len(shapes)} parameters")
        elif value.ndim and value.shape != shapes[int(index)] and not name.endswith(SCALES):
            faults.append(f"{key} is {list(value.shape)}, its parameter {list(shapes[int(index)])}")
        elif value.dtype not in ((torch.uint8,) if name.endswith(CODES) else NUMBERS):
            faults.append(f"{key} is of {value.dtype}")
    if faults:
        raise UnfitError("optimizer", listed(faults))


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
    try:
        typed = {name: _typed_like(live[name], value) if name in live else value for name, value in saved.items()}
    except (TypeError, ValueError) as error:
        raise UnfitError("optimizer", f"its settings are of other types ({error})") from error
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
    if isinstance(live, int | float) and not isinstance(saved, int | float):
        raise TypeError(f"{saved!r} in place of {live!r}")
    return saved
