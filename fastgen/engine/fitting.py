"""Whether what a checkpoint holds fits what it is to fill: strictly, and said by name where it does not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, first_few
from ..models.sharding import load

_SHOWN = 10  # differences an error spells out


class UnfitError(CheckpointError):
    """A part of a checkpoint is of another network, optimizer or precision.

    Args:
        what: the part, as a user would call it.
        faults: what does not fit.
    """

    def __init__(self, what: str, faults: str) -> None:
        super().__init__(
            f"the checkpoint does not fit the {what}: {faults}. Resume with the config that wrote it (same "
            "architecture, rank and dtype), use another checkpoint, or start in another output folder"
        )


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Load a state dict strictly: the same keys and shapes, and no dtype that would round.

    Args:
        module: receives the values in its own dtypes and devices; a wider dtype than the saved one is fine.
        tensors: key -> tensor, as in `module.state_dict()`.
        what: how an error calls the module, such as "generator".

    Raises:
        UnfitError: naming missing, unexpected and unfitting keys; the module is unchanged.
    """
    check_tensors(module.state_dict(), tensors, what=what)
    load(module, tensors)


def check_tensors(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Compare tensors of a checkpoint with those that they are to fill: by name, shape and dtype.

    Raises:
        UnfitError: naming missing, unexpected and unfitting keys.
    """
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
        raise UnfitError(what, "; ".join(f"{fault}: {listed(keys)}" for fault, keys in faults.items() if keys))


def restore_scaler(scaler: torch.amp.GradScaler, saved: Mapping[str, Any], *, what: str) -> None:
    """Put the loss scaler of a turn back.

    Raises:
        UnfitError: it is of a run in another precision, or damaged.
    """
    live = scaler.state_dict()
    if saved.keys() != live.keys() or not all(type(saved[name]) is type(value) for name, value in live.items()):
        raise UnfitError(f"loss scaler of the {what}", f"it has {listed(sorted(saved)) or 'nothing'}")
    scaler.load_state_dict(dict(saved))


def listed(items: list[str]) -> str:
    """The first ten in words, and how many there are in all."""
    whole = f" ({len(items)} in all)" if len(items) > _SHOWN else ""
    return first_few(items, _SHOWN) + whole


def _rounds(saved: torch.dtype, live: torch.dtype) -> bool:
    """Whether values of dtype `saved` cannot all be held exactly by `live`."""
    if saved == live:
        return False
    if not (saved.is_floating_point and live.is_floating_point):
        return True
    theirs, ours = torch.finfo(saved), torch.finfo(live)
    return ours.eps > theirs.eps or ours.max < theirs.max
