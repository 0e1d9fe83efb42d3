"""Regional compilation: the repeated blocks of a network, each compiled for itself.

A region is a member of one of the network's module lists that has more than one layer with parameters: a transformer
block, a residual block, an attention. Three kinds of layers stay uncompiled: blocks that are computed again in
`backward`, layers between regions, and blocks that too few others are like, which take longer to compile than they
would ever save.

Where compile time does not matter, a whole level of a U-Net becomes one region: its residual blocks and attentions,
the joins with skips before them, and the change of resolution behind. Levels with stacks of transformer blocks are left
out, since those blocks repeat. A group norm between regions is then compiled too: as written, it copies channels-last
images in both passes.
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
from .doubling import DoublingAsCopies
from .joins import PartsApart, PartsAsImages

MIN_ALIKE = 4
"""The fewest blocks of one structure that are worth compiling. SDXL has 87 blocks: 70 transformer blocks of 2
structures, and 17 residual blocks of 13, each of which takes as long to compile."""
MAX_FORMS = 64
"""The most compiled forms that one kind of region may have: by batch size, dtype, and what requires gradients."""
OPTIONS: dict[str, Any] = {"triton.cudagraphs": False, "shape_padding": False}
"""Options of PyTorch's compiler: we record CUDA graphs ourselves, and matrix products are not timed with padding."""
CHANNELS_LAST: dict[str, Any] = {
    "force_layout_optimization": True,
    "pre_grad_custom_pass": DoublingAsCopies(),
    "joint_custom_post_pass": PartsAsImages(),
    "post_grad_custom_pre_pass": PartsApart(),
}
"""Further options where images are channels-last. Without them the compiler changes the layout back where a convolution
halves the channels, as those after a joined skip do, leaves gradients in windows of a larger tensor, and scatters those
of upsampling."""
SKIPPED_GUARDS = ("use_recursive_dict_tags_for_guards", "skip_tensor_guards_with_matching_dict_tags")
"""Settings of PyTorch's tracer that are switched off. Under them a module counts as unchanged until one of its
attributes is set, so that up to PyTorch 2.11 code compiled for frozen weights is still used after `requires_grad_`
has thawed them: they get no gradient, or blocks that are computed again save other tensors than before."""
WARM_UP = 2
"""Cycles in which compiling is expected: the first, and the first after an update."""


class Region(nn.Module):
    """A block whose `forward` is compiled; hooks on the block itself are called, those on its layers are not."""


def find_regions(
    net: nn.Module, ends: Sequence[str] = (), *, every: bool = False, levels: bool = False
) -> dict[str, nn.Module]:
    """The regions of a network by name, in its order: those of structures that repeat, or all where none does.

    Args:
        ends: names of layers whose output is read; none is left within a region.
        every: take regions of all structures, however few are alike.
        levels: take each level of a U-Net as one region, unless it computes blocks again, and norms between regions.
    """
    blocks = dict(_blocks(net, "", ends, listed=False, levels=levels))
    alike = Counter(map(_structure, blocks.values()))
    repeated = {name: block for name, block in blocks.items() if alike[_structure(block)] >= MIN_ALIKE}
    return repeated if repeated and not every else blocks


def compile_regions(net: nn.Module, ends: Sequence[str] = (), *, every: bool = False, levels: bool = False) -> None:
    """Compiles the regions of a network in place; regions of one structure share their code, also in copies.

    If most of the network's convolutions are compiled, images on a GPU are made channels-last, the layout that cuDNN
    computes in, on the way into each region and out of it: layers between regions, such as a group norm, may change it
    back. A compiled region is a subclass of its class, so that a copy computes with its own weights. Compiled code is
    kept on disk for the next run, in PyTorch's own folder if one is set, else in fastgen's.

    Args:
        ends: names of layers whose output is read, see `find_regions`.
        every: compile blocks of all structures, each of which takes seconds.
        levels: compile each level of a U-Net as one region; no blocks may be computed again later on either.

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
    channels_last = _hold_most_convolutions(net, regions.values())
    for block in fresh:
        kind: Any = type(block)
        block.__class__ = _compiled(kind, _structure(block), channels_last)
    for part in (net, *fresh) if fresh and channels_last else ():
        part.register_forward_pre_hook(_take_channels_last, with_kwargs=True)


def as_written() -> AbstractContextManager[None]:
    """Within, regions run uncompiled: compiled code has neither forward-mode nor second derivatives."""
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
    settings.recompile_limit = max(MAX_FORMS, settings.recompile_limit)
    for name in SKIPPED_GUARDS:
        if hasattr(settings, name):
            setattr(settings, name, False)
    # Diffusers compares versions in its blocks, by a cached function.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    _THREAD.set_up = True


@dataclass
class Recompilations:
    """Notices what the cycles of a stage still compile once every form of a region should be known.

    Args:
        watched: whether there are regions; otherwise nothing is reported.
        cycles: number of cycles that are over.
    """

    watched: bool
    cycles: int = field(default=0, init=False)

    @contextmanager
    def cycle(self) -> Iterator[list[str]]:
        """Within, collects the regions that are compiled and the guards that failed; nothing in the first cycles."""
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


def _hold_most_convolutions(net: nn.Module, regions: Iterable[nn.Module]) -> bool:
    """Whether the regions hold most convolutions of a network; uncompiled group norms are slower on channels-last."""
    return 2 * sum(map(_convolutions, regions)) > _convolutions(net)


def _take_channels_last(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook that makes images on a GPU among the arguments channels-last."""
    return tree_map(_channels_last, (args, kwargs))


def _channels_last(value: Any) -> Any:
    image = isinstance(value, Tensor) and value.ndim == 4 and value.is_cuda
    return value.contiguous(memory_format=torch.channels_last) if image else value


def _blocks(
    module: nn.Module, path: str, ends: Sequence[str], *, listed: bool, levels: bool
) -> Iterator[tuple[str, nn.Module]]:
    larger = levels and path and (_is_level(module) or isinstance(module, nn.GroupNorm))
    whole = larger or (listed and _is_block(module))
    if whole and not any(end.startswith(f"{path}.") for end in ends):
        yield path, module
        return
    inside = isinstance(module, nn.ModuleList)
    for name, child in module.named_children():
        yield from _blocks(child, f"{path}.{name}".lstrip("."), ends, listed=inside, levels=levels)


def _is_block(module: nn.Module) -> bool:
    """Whether a module has several layers with parameters, and none that computes others again in `backward`."""
    layers = [part for part in module.modules() if part._parameters]
    return len(layers) > 1 and not any(hasattr(part, "gradient_checkpointing") for part in module.modules())


def _is_level(module: nn.Module) -> bool:
    """Whether a module has lists of blocks, some with convolutions, and computes none of their layers again."""
    blocks = [block for part in module.children() if isinstance(part, nn.ModuleList) for block in part.children()]
    stacks = any(hasattr(part, "gradient_checkpointing") for block in blocks for part in block.modules())
    again = stacks or getattr(module, "gradient_checkpointing", False)
    return not again and any(_is_block(block) and _convolutions(block) for block in blocks)


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d) for layer in module.modules())


def _structure(block: nn.Module) -> tuple[Any, ...]:
    """A key that blocks running the same compiled code share: classes, settings and shapes of their layers."""
    parts = tuple((type(part), *_settings(part)) for part in block.modules())
    return parts, tuple(parameter.shape for parameter in block.parameters())


def _settings(part: nn.Module) -> Iterator[tuple[str, type, Any]]:
    plain = (bool, int, float, str, type(None))
    return ((name, type(value), value) for name, value in vars(part).items() if isinstance(value, plain))


@cache
def _compiled(kind: Any, structure: tuple[Any, ...], channels_last: bool) -> type[nn.Module]:
    """A subclass of `kind`, of the same name, whose `forward` is compiled; one for each structure.

    Args:
        channels_last: images come in channels-last, and are returned so.
    """
    function = _own_code(_return_channels_last(kind.forward) if channels_last else kind.forward, kind.__name__)
    options = OPTIONS | CHANNELS_LAST if channels_last else OPTIONS
    compiled = torch.compile(function, dynamic=False, options=options)

    @wraps(kind.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not _THREAD.set_up:
            _set_up()
        return compiled(*args, **kwargs)

    return type(kind.__name__, (Region, kind), {"__module__": __name__, "forward": forward})


def _return_channels_last(forward: Any) -> Any:
    """A `forward` that returns images on a GPU channels-last, which its last kernel then writes directly."""

    @wraps(forward)
    def returning(*args: Any, **kwargs: Any) -> Any:
        return tree_map(_channels_last, forward(*args, **kwargs))

    return returning


def _own_code(function: Any, name: str) -> FunctionType:
    """A `forward` with a code object of its own: PyTorch keeps and reports compiled forms by code object."""
    code = function.__code__.replace(co_name=name)
    new = FunctionType(code, function.__globals__, closure=function.__closure__)
    new.__dict__.update(vars(function))
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        setattr(new, attribute, getattr(function, attribute))
    return new
