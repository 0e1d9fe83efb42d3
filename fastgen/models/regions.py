"""The blocks that a network is stacked from, compiled each for itself (PyTorch's regional compilation).

A region is a member of one of the network's lists with more than one layer of its own: transformer blocks, residual
blocks, attentions. What recomputes blocks in `backward` stays as it was written, and so do the layers between regions
and the blocks that are like few others, since to compile them takes longer than they ever save.

Where that is no matter, a level of a U-Net is one region: its residual blocks and attentions, the joins with skips
before them, and what changes the resolution behind. One with stacks of transformer blocks is none: they repeat.
"""

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import UserError
from ..files import cache_folder
from .joins import PartsApart, PartsAsImages

REPEATS = 4
"""How many blocks of one structure are worth compiling: of SDXL's 87, 70 transformer blocks are of 2 structures, and
17 residual ones of 13, each of which takes as long."""
VARIANTS = 64
"""How many forms of one kind of region are compiled at most: by batch, by dtype, by what has a gradient."""
OPTIONS: dict[str, str | int | bool | Any] = {"triton.cudagraphs": False, "shape_padding": False}
"""Of PyTorch's compiler: graphs are ours, and no product is measured with padded sides while it compiles."""
TURNED: dict[str, bool | Any] = {
    "force_layout_optimization": True,
    "joint_custom_post_pass": PartsAsImages(),
    "post_grad_custom_pre_pass": PartsApart(),
}
"""The same where images come channels-last. The compiler would turn them back where a convolution leaves half of its
channels, as those behind a joined skip do, and leave gradients in windows where written blocks have them."""
SKIPPED = ("use_recursive_dict_tags_for_guards", "skip_tensor_guards_with_matching_dict_tags")
"""Settings of PyTorch's tracer under which a module counts as unchanged while none of its attributes is set. Up to
2.11 code of frozen weights then goes on when `requires_grad_` has thawed them: they get no gradient, or blocks that are
computed again keep other tensors than before."""
WARM_UP = 2
"""Cycles in which regions are compiled: the first, and the first with all that begins after an update."""


class Region(nn.Module):
    """A block whose `forward` is compiled; hooks on the block itself are called, those on its layers are not."""


def find_regions(
    net: nn.Module, ends: Sequence[str] = (), *, every: bool = False, levels: bool = False
) -> dict[str, nn.Module]:
    """The regions of a network by name, in its order: those of structures that repeat, or all where none does.

    Args:
        ends: names of layers whose output is read; none is left within a region.
        every: those of all structures, however few are alike.
        levels: levels of a U-Net as one region each, but those that compute blocks again.
    """
    blocks = dict(_blocks(net, "", ends, listed=False, levels=levels))
    alike = Counter(map(_structure, blocks.values()))
    often = {name: block for name, block in blocks.items() if alike[_structure(block)] >= REPEATS}
    return blocks if every else often or blocks


def compile_regions(net: nn.Module, ends: Sequence[str] = (), *, every: bool = False, levels: bool = False) -> None:
    """Compiles the regions of a network, in place; regions of one structure share their code, in copies as well.

    Where most convolutions are compiled, images on a GPU are channels-last, which convolutions compute in there, on
    the way into each region and out of it too: a group norm that is not compiled turns them back, as some layers do.
    A compiled region is a subclass of its class, so that a copy computes with its own weights. What is compiled is
    kept for the next run, in the folder that PyTorch is told or in ours.

    Args:
        ends: names of layers whose output is read, see `find_regions`.
        every: blocks of all structures, each of which takes seconds to compile.
        levels: levels of a U-Net as one region each, where no blocks will be computed again later on either.

    Raises:
        UserError: the network has none.
    """
    regions = find_regions(net, ends, every=every, levels=levels)
    if not regions:
        raise UserError(
            f"train.compile is on, and {type(net).__name__} has no stack of blocks to compile: switch it off"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    _set_up()
    fresh = [block for block in regions.values() if not isinstance(block, Region)]
    turned = _hold_convolutions(net, regions.values())
    for block in fresh:
        kind: Any = type(block)
        block.__class__ = _compiled(kind, _structure(block), turned)
    for part in (net, *fresh) if fresh and turned else ():
        part.register_forward_pre_hook(_told_channels_last, with_kwargs=True)


def as_written() -> AbstractContextManager[None]:
    """Within, regions run as they were written: compiled code has no forward-mode and no second derivatives."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def layer_to_hook(net: nn.Module, name: str) -> nn.Module:
    """The layer of that name, whose hooks are called.

    Raises:
        ValueError: it lies within a region, whose compiled code knows no hooks.
    """
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(len(parts))]
    inside = [path for path in above if isinstance(net.get_submodule(path), Region)]
    if inside:
        raise ValueError(f"{name} lies within the compiled region {inside[0]}: compile with it among the ends")
    return net.get_submodule(name)


class _Thread(threading.local):
    """A thread that runs regions: the one that trains, and PyTorch's own, in which blocks are computed again.

    Attributes:
        set_up: whether it has our settings, which since PyTorch 2.12 are each thread's own.
    """

    set_up = False


_THREAD = _Thread()


def _set_up() -> None:
    """Gives the tracer our settings in this thread."""
    settings = torch._dynamo.config
    settings.recompile_limit = max(VARIANTS, settings.recompile_limit)
    for name in SKIPPED:
        if hasattr(settings, name):
            setattr(settings, name, False)
    warnings.filterwarnings(
        "ignore", "Dynamo detected a call to a `functools.lru_cache`"
    )  # Diffusers asks for versions
    _THREAD.set_up = True


@dataclass
class Recompilations:
    """What the cycles of a stage compile once every form of a region should be known.

    Args:
        watched: whether there are regions; nothing is told without.
        cycles: how many are over.
    """

    watched: bool
    cycles: int = field(default=0, init=False)

    @contextmanager
    def cycle(self) -> Iterator[list[str]]:
        """Collects the regions that are compiled within, and the guards that failed; none of the first cycles."""
        reasons: list[str] = []
        before = _compiled_graphs() if self.watched else 0
        yield reasons
        self.cycles += 1
        if self.watched and self.cycles > WARM_UP:
            reasons += _latest(_compiled_graphs() - before)


def _compiled_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _latest(count: int) -> list[str]:
    """The names of the regions that were compiled last, each with the guard that failed."""
    compiled = [metrics for metrics in torch._dynamo.utils.get_compilation_metrics() if metrics.co_name]
    return [f"{metrics.co_name} ({metrics.recompile_reason or 'new'})" for metrics in compiled[-count:] if count]


def _hold_convolutions(net: nn.Module, regions: Iterable[nn.Module]) -> bool:
    """Whether most convolutions of a network are compiled: a group norm that is not is slower on channels-last."""
    return 2 * sum(map(_convolutions, regions)) > _convolutions(net)


def _told_channels_last(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a network or a region is told, images on a GPU in the memory format that its convolutions compute in."""
    return tree_map(_channels_last, (args, kwargs))


def _channels_last(value: Any) -> Any:
    image = isinstance(value, Tensor) and value.ndim == 4 and value.is_cuda
    return value.contiguous(memory_format=torch.channels_last) if image else value


def _blocks(
    module: nn.Module, path: str, ends: Sequence[str], *, listed: bool, levels: bool
) -> Iterator[tuple[str, nn.Module]]:
    whole = (listed and _is_block(module)) or (levels and path and _is_level(module))
    if whole and not any(end.startswith(f"{path}.") for end in ends):
        yield path, module
        return
    inside = isinstance(module, nn.ModuleList)
    for name, child in module.named_children():
        yield from _blocks(child, f"{path}.{name}".lstrip("."), ends, listed=inside, levels=levels)


def _is_block(module: nn.Module) -> bool:
    """Whether it has layers to fuse, none of which computes others again in `backward`."""
    layers = [part for part in module.modules() if part._parameters]
    return len(layers) > 1 and not any(hasattr(part, "gradient_checkpointing") for part in module.modules())


def _is_level(module: nn.Module) -> bool:
    """Whether it has lists of blocks, residual ones of images among them, and computes none of their layers again."""
    blocks = [block for part in module.children() if isinstance(part, nn.ModuleList) for block in part.children()]
    stacks = any(hasattr(part, "gradient_checkpointing") for block in blocks for part in block.modules())
    again = stacks or getattr(module, "gradient_checkpointing", False)
    return not again and any(_is_block(block) and _convolutions(block) for block in blocks)


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d) for layer in module.modules())


def _structure(block: nn.Module) -> tuple[Any, ...]:
    """Classes, shapes and settings of a block's layers: what blocks that run the same compiled code agree in."""
    parts = tuple((type(part), *_settings(part)) for part in block.modules())
    return parts, tuple(parameter.shape for parameter in block.parameters())


def _settings(part: nn.Module) -> Iterator[tuple[str, type, Any]]:
    plain = (bool, int, float, str, type(None))
    return ((name, type(value), value) for name, value in vars(part).items() if isinstance(value, plain))


@cache
def _compiled(kind: Any, structure: tuple[Any, ...], turned: bool) -> type[nn.Module]:
    """The class of compiled regions of that class and structure, by the name that those who ask for it know.

    Args:
        turned: images come channels-last, and leave so.
    """
    function = _own_code(_leaving_channels_last(kind.forward) if turned else kind.forward, kind.__name__)
    compiled = torch.compile(function, dynamic=False, options={**OPTIONS, **(TURNED if turned else {})})

    @wraps(kind.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not _THREAD.set_up:
            _set_up()
        return compiled(*args, **kwargs)

    return type(kind.__name__, (Region, kind), {"__module__": __name__, "forward": forward})


def _leaving_channels_last(forward: Any) -> Any:
    """A `forward` whose images leave in the memory format of convolutions, which its last kernel writes them in."""

    @wraps(forward)
    def leaving(*args: Any, **kwargs: Any) -> Any:
        return tree_map(_channels_last, forward(*args, **kwargs))

    return leaving


def _own_code(function: Any, name: str) -> FunctionType:
    """A `forward` with a code object of its own, under which compiled forms are kept and reported."""
    code = function.__code__.replace(co_name=name)
    new = FunctionType(code, function.__globals__, closure=function.__closure__)
    new.__dict__.update(vars(function))
    for said in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        setattr(new, said, getattr(function, said))
    return new
