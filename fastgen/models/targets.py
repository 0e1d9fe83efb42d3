"""Which layers of a network get an adapter: found by what the modules are, not by what they are called."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from ..errors import UserError, did_you_mean
from .experts import networks_in

Convolution = nn.Conv2d | nn.Conv3d
SETTING = "lora.targets"


def find_targets(net: nn.Module, wanted: Sequence[str] | None = None) -> list[str]:
    """Full names of the layers to adapt, in the network's order.

    Args:
        net: the network without adapters.
        wanted: ends of layer names ("to_q", "ff.net.2") or regular expressions for whole names; None for all linear
            layers and 1 x 1 convolutions in the attention and feed-forward parts of the repeated blocks. A network
            without transformer blocks gets the convolutions of its residual blocks as well.

    Raises:
        UserError: one of `wanted` fits no layer, or there is nothing to adapt by default.
    """
    layers = {name: module for name, module in net.named_modules() if _adaptable(module)}
    found = set(_named(layers, wanted)) if wanted is not None else _default(net) & set(layers)
    if not found:
        raise UserError(f"{type(net).__name__} has no blocks to adapt by default: name layers in lora.targets")
    idle = [part for part in networks_in(net) if not any(name.startswith(part) for name in found)]
    if idle:
        raise UserError(
            f"lora.targets fit no layer of the {idle[0].removesuffix('.')}-noise network, one of this pipeline's two, "
            "so that it could not learn: name layers that both have"
        )
    return [name for name in layers if name in found]


def find_frozen(module: nn.Module, wanted: Sequence[str], *, setting: str) -> frozenset[str]:
    """Names of the parameters that stay as they are.

    Args:
        module: what would train all of them.
        wanted: regular expressions, each for a part of a name as the network itself has it.
        setting: what a config calls them, for errors.

    Raises:
        UserError: one of `wanted` fits no parameter or is no regular expression, or nothing would be left to train.
    """
    if not wanted:
        return frozenset()
    names = {name: re.sub(r"^(inner\.)?net\.", "", name) for name, _ in module.named_parameters()}
    found: set[str] = set()
    for one in wanted:
        fitting = {name for name, bare in names.items() if _fits(re.search, one, bare, setting)}
        if not fitting:
            some = ", ".join([*names.values()][:3])
            raise UserError(f"{setting} has {one!r}, which fits no parameter; there are e.g. {some}")
        found |= fitting
    if len(found) == len(names):
        raise UserError(f"{setting} fits all {len(names)} parameters, so that nothing would learn: name fewer")
    return frozenset(found)


def one_dimensional(net: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(module name, module, parameter name) of what norm layers own and of the biases of linear layers."""
    return [
        (name, module, own)
        for name, module in net.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if (_is("Norm", module) and parameter.ndim == 1) or (isinstance(module, nn.Linear) and own == "bias")
    ]


def _named(layers: dict[str, nn.Module], wanted: Sequence[str]) -> Iterator[str]:
    for one in wanted:
        fitting = [
            name
            for name in layers
            if name == one or name.endswith(f".{one}") or _fits(re.fullmatch, one, name, SETTING)
        ]
        if not fitting:
            ends = list(dict.fromkeys(end for name in layers for end in _ends(name)))
            hint = did_you_mean(one, ends, most=3, otherwise=f"the network has e.g. {', '.join(list(layers)[:3])}")
            raise UserError(f"lora.targets names {one!r}, which fits no layer; {hint}")
        yield from fitting


def _fits(match: Callable[[str, str], Any], pattern: str, name: str, setting: str) -> bool:
    try:
        return match(pattern, name) is not None
    except re.error as error:
        raise UserError(f"{setting} has {pattern!r}, which is no regular expression ({error}): correct it") from error


def _ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _default(net: nn.Module) -> set[str]:
    blocks = _attention_blocks(net)
    found = {f"{path}.{name}".rstrip(".") for path, block in blocks.items() for name in _token_layers(block)}
    if all(_is("Attention", block) for block in blocks.values()):
        found |= {
            f"{path}.{name}"
            for path, block in net.named_modules()
            if _is("Resnet", block) and not isinstance(block, nn.ModuleList)
            for name, module in block.named_modules()
            if isinstance(module, Convolution)
        }
    return found


def _attention_blocks(net: nn.Module) -> dict[str, nn.Module]:
    """The innermost members of module lists that hold an attention: transformer blocks, or bare attentions."""
    blocks = {
        f"{path}.{index}": block
        for path, stack in net.named_modules()
        if isinstance(stack, nn.ModuleList)
        for index, block in stack.named_children()
        if any(_is("Attention", module) for module in block.modules())
    }
    outer = {path[:i] for path in blocks for i, letter in enumerate(path) if letter == "."}
    return {path: block for path, block in blocks.items() if path not in outer}


def _token_layers(block: nn.Module, path: str = "") -> Iterator[str]:
    """Linear layers and 1 x 1 convolutions, without those that turn the time or label into shifts, scales and gates.

    The latter sit in norms and embeddings, or alone in a sequence with an activation.
    """
    if isinstance(block, nn.Linear) or (isinstance(block, Convolution) and set(block.kernel_size) == {1}):
        yield path
    modulation = isinstance(block, nn.Sequential) and sum(isinstance(m, nn.Linear) for m in block.modules()) == 1
    if not (modulation or _is("Norm", block) or _is("Embed", block)):
        for name, child in block.named_children():
            yield from _token_layers(child, f"{path}.{name}".lstrip("."))


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, Convolution) and module.groups == 1)


def _is(kind: str, module: nn.Module) -> bool:
    return kind in type(module).__name__
