"""Whether an export keeps what was trained: sound weights, and updates that survive the dtype they are saved in.

A merge in half precision rounds W + U. Where U is small beside W, most of it is lost: of entries below half a step of
the format nothing stays. What is lost is measured as |saved - trained| / |U| over all that was trained.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, warn
from ..models.adapters import alias
from ..models.casting import HALF, dtype_at, renewed, saved
from ..models.low_rank import UP_KEY
from ..models.made import Made, path_of
from ..models.pipelines.source import DTYPES, Dtype

LOST = 0.01  # share of the update that rounding may lose; beyond it weights are saved in float32


@dataclass(frozen=True)
class Saved:
    """A trained network as it is saved.

    Args:
        network: network with its parameters in the dtypes of the file.
        outline: the same without values, on the meta device.
        lost: share of the trained update that is not in them.
        if_half: the share that half precision would have lost.
        exact: whether every parameter is the trained one.
    """

    network: Made
    outline: nn.Module
    lost: float
    if_half: float
    exact: bool

    def notice(self) -> str | None:
        """What a user should know of it, if anything."""
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in self.outline.parameters()})
        if self.lost > LOST:
            return (
                f"WARNING: {', '.join(dtypes)} loses {self.lost:.1%} of the trained update of the student; "
                "export.dtype=auto keeps it"
            )
        if self.if_half > LOST:
            return f"half precision would lose {self.if_half:.1%} of the trained update: saved in {', '.join(dtypes)}"
        return f"{self.lost:.2%} of the trained update is lost in {', '.join(dtypes)}" if self.lost else None


def saved_as(network: Made, updates: Mapping[str, float], *, half: torch.dtype, choice: Dtype) -> Saved:
    """A trained network in the dtypes that it is saved in.

    Args:
        network: network as it was trained, float32; each of its parameters is looked at once.
        updates: parameter -> norm of its trained update; parameters that were not trained are absent.
        half: half precision that the run's students are saved in, or float32.
        choice: auto keeps every parameter exactly, in half precision where that is exact, and rounds the trained ones
            only where at most `LOST` of the update goes; another dtype is that of all parameters.
    """
    dtype = DTYPES.get(choice, half)
    if dtype == torch.float32:
        return Saved(network, _outline(network, {}), 0.0, 0.0, exact=True)
    like = network.like
    dtypes = {path: dtype_at(like, path, dtype) for path, tensor in saved(like) if tensor.is_floating_point()}
    gaps, exact_in = dict[str, float](), dict[str, torch.dtype]()
    for name, parameter in network.named_parameters():
        gaps[name] = _rounding(parameter, dtypes[path_of(name)])
        if gaps[name] and choice == "auto":
            exact_in[name] = _exact(parameter)
    share = math.hypot(*(gaps[name] for name in updates)) / math.hypot(*updates.values()) if updates else 0.0
    for name in exact_in:
        if name not in updates or share > LOST:
            dtypes[path_of(name)], gaps[name] = exact_in[name], 0.0
    exact = not any(gaps.values())
    held = network.then(lambda path, tensor: tensor.to(dtypes.get(path, tensor.dtype)))
    return Saved(held, _outline(network, dtypes), 0.0 if exact else share, share, exact)


def _outline(network: Made, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """A network of these dtypes, else of float32, without values."""

    def empty(path: str, tensor: Tensor) -> Tensor:
        kept = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=dtypes.get(path, kept), device="meta")

    return renewed(alias(network.like), empty)


def _rounding(trained: Tensor, dtype: torch.dtype) -> float:
    """The norm of what a dtype takes from a parameter."""
    return float((trained.to(dtype).float() - trained).norm())


def _exact(weight: Tensor) -> torch.dtype:
    """A half precision that holds the weight exactly, or float32."""
    return next((dtype for dtype in HALF if torch.equal(weight.to(dtype).float(), weight)), torch.float32)


def check_sound(network: Made, updates: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Parameter -> norm of its trained update, where that is not zero.

    Args:
        network: network as it was trained; each of its parameters is looked at once.
        updates: parameter -> what training added to it.

    Raises:
        UserError: a parameter is not finite or became zero; names them.
    """
    norms = {name: float(update.detach().double().norm()) for name, update in updates}
    spoilt, empty = list[str](), list[str]()
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            spoilt.append(name)
        elif norms.get(name) and not parameter.any():
            empty.append(name)
    _refuse(spoilt, "NaN or infinite values")
    _refuse(empty, "nothing but zeros")
    changed = {name: norm for name, norm in norms.items() if norm}
    if not changed:  # as where the best measurement is the one before the first update
        first = next(iter(norms), "no parameter")
        warn(f"{first} and all others were not changed: the student is as it was before training")
    return changed


def check_adapter(weights: Mapping[str, Tensor]) -> None:
    """Raises UserError where a LoRA's factors are not finite, or all its updates are zero; names the tensors."""
    _refuse([name for name, weight in weights.items() if not weight.isfinite().all()], "NaN or infinite values")
    ups = [name for name in weights if name.endswith(UP_KEY)]
    if not any(weights[name].any() for name in ups):
        _refuse(ups, "nothing but zeros, so that the LoRA would change nothing")


def _refuse(names: list[str], what: str) -> None:
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(
            f"the student is not exported: {names[0]}{others} has {what}. Nothing was written; go on from an earlier "
            "checkpoint, with a smaller learning rate or in another precision"
        )
