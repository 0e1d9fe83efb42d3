"""Weights that compute in bf16 and are trained as if they were in float32.

A `split` weight is a float32 number in two halves: the nearest bf16, which layers compute with, and beside it the
sixteen bits that are left, so that nothing is lost and nothing is held twice. A `bf16` weight is all there is: an
update rounds it up or down by chance, so that the mean of many is exact where rounding to the nearest would stand
still (stochastic rounding; Gupta et al. 2015, arXiv:1502.02551).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .casting import HALF, cast

Masters = Literal["fp32", "split", "bf16"]
AT_ONCE = 2**24
"""Values of weights that are in float32 at a time, where not all are."""

Item = TypeVar("Item")


def halve(net: nn.Module, masters: Masters, gradients: torch.dtype) -> nn.Module:
    """The network with its weights in bf16, in place, but for what it keeps in float32.

    Of split weights, state dicts hold the float32 numbers, on the CPU, and so do those that are loaded.

    Args:
        net: network whose weights are trained.
        masters: "split" or "bf16".
        gradients: dtype of the gradients, in which those of several passes add up.
    """
    before = dict(net.named_parameters()) if masters == "split" else {}
    whole = {name: parameter.detach() for name, parameter in before.items()}
    cast(net, torch.bfloat16)
    for name, parameter in net.named_parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.grad_dtype = gradients
            if name in whole:
                parameter.low = torch.empty_like(parameter, dtype=torch.int16)  # type: ignore[attr-defined]
                assign([parameter], [whole.pop(name)])
    if masters == "split":
        net.register_state_dict_post_hook(_joined)
        net.register_load_state_dict_pre_hook(_split)
    return net


def low_of(parameter: Tensor) -> Tensor | None:
    """The bits beside a split weight; None of another."""
    return getattr(parameter, "low", None)


def is_halved(parameter: Tensor) -> bool:
    """Whether an update goes through float32 numbers that are not the parameter itself."""
    return parameter.dtype in HALF


def in_buckets(items: Sequence[Item], tensor: Callable[[Item], Tensor]) -> Iterator[list[Item]]:
    """Runs of items whose tensors have at most `AT_ONCE` values together, a larger one alone."""
    bucket: list[Item] = []
    held = 0
    for item in items:
        count = tensor(item).numel()
        if bucket and held + count > AT_ONCE:
            yield bucket
            bucket, held = [], 0
        bucket.append(item)
        held += count
    if bucket:
        yield bucket


def values_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The numbers that are trained: new tensors in float32 of halved weights, of others the weights themselves."""
    if not any(map(is_halved, parameters)):
        return [*parameters]
    split = [p for p in parameters if low_of(p) is not None]
    half = [p for p in parameters if is_halved(p) and low_of(p) is None]
    whole = dict(zip(map(id, split), _values(split), strict=True)) if split else {}
    whole |= dict(zip(map(id, half), gathered(half, torch.float32)[1], strict=True)) if half else {}
    return [whole.get(id(p), p.detach()) for p in parameters]


@torch.no_grad()
def assign(parameters: Sequence[Tensor], values: Sequence[Tensor], *, rng: torch.Generator | None = None) -> None:
    """Writes values: exactly into split weights, into others rounded to the nearest, or under `rng` by chance."""
    split = [i for i, p in enumerate(parameters) if low_of(p) is not None]
    if split:
        _assign_split([parameters[i] for i in split], [values[i] for i in split])
    chance = [i for i, p in enumerate(parameters) if rng is not None and p.dtype == torch.bfloat16 and i not in split]
    if chance and rng is not None:
        flat, _ = gathered([values[i] for i in chance], torch.float32, parameters[chance[0]].device)
        _spread(rounded(flat, rng), [parameters[i] for i in chance])
    for i in {*range(len(parameters))} - {*split, *chance}:
        parameters[i].detach().copy_(values[i])


@torch.no_grad()
def moved(
    parameters: Sequence[Tensor], towards: Sequence[Tensor], share: float, *, rng: torch.Generator | None = None
) -> None:
    """Moves weights, in place, by a share of the way to others of their shapes, computed in float32 numbers.

    Args:
        rng: rounds by chance those that are bf16 alone, which else stay where they are if the share is small.
    """
    for bucket in in_buckets([*range(len(parameters))], parameters.__getitem__):
        followers = [parameters[i] for i in bucket]
        values = values_of(followers)
        live = values_of([towards[i] for i in bucket])
        torch._foreach_lerp_(values, [one.to(value.dtype) for one, value in zip(live, values, strict=True)], share)
        if any(map(is_halved, followers)):
            assign(followers, values, rng=rng)


def gathered(
    tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Copies of tensors in one of one axis, and its parts of their shapes."""
    flat = torch.empty(sum(t.numel() for t in tensors), dtype=dtype, device=device or tensors[0].device)
    parts = _parts(flat, tensors)
    torch._foreach_copy_(parts, [t.detach() for t in tensors])
    return flat, parts


def rounded(values: Tensor, rng: torch.Generator) -> Tensor:
    """Float32 numbers as bf16: the neighbour above or below, the nearer the likelier, so that the mean is exact."""
    bits = torch.randint(0, 2**16, values.shape, generator=rng, dtype=torch.int32, device=values.device)
    bits += values.view(torch.int32)
    return bits.bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def _values(split: Sequence[Tensor]) -> list[Tensor]:
    """High and low as one number: the high half is the nearest bf16, so that the low one has a sign."""
    bits, _ = gathered([p.detach().view(torch.int16) for p in split], torch.int32)
    low, _ = gathered([_low(p) for p in split], torch.int16)
    return _parts(bits.bitwise_left_shift_(16).add_(low).view(torch.float32), split)


def _assign_split(split: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Ties go away from zero: both neighbours of a tie could not be told apart by sixteen bits."""
    flat, _ = gathered(values, torch.float32, split[0].device)
    bits = flat.view(torch.int32)
    high = bits.add(2**15).bitwise_right_shift_(16)
    _spread(high.to(torch.int16).view(torch.bfloat16), split)
    _spread(bits.sub_(high.bitwise_left_shift_(16)).to(torch.int16), [_low(p) for p in split])


def _low(parameter: Tensor) -> Tensor:
    low = low_of(parameter)
    assert low is not None
    return low


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    torch._foreach_copy_([t.detach() for t in tensors], _parts(flat, tensors))


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = torch.split(flat, [t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]


def _joined(net: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict hook that joins halved weights, on the CPU so that the device holds no second copy."""
    for name, parameter in net.named_parameters(remove_duplicate=False):
        low = low_of(parameter)
        if low is not None:
            high = parameter.detach().cpu().view(torch.int16).to(torch.int32)
            state[prefix + name] = high.bitwise_left_shift_(16).add_(low.cpu()).view(torch.float32)


def _split(net: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before a state dict is loaded that splits its weights; they are written here, then onto themselves."""
    for name, parameter in net.named_parameters(remove_duplicate=False):
        told = state.get(prefix + name)
        if low_of(parameter) is not None and told is not None and told.shape == parameter.shape:
            assign([parameter], [told])
            state[prefix + name] = parameter.detach()
