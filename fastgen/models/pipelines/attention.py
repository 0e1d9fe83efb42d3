"""Which kernel computes the attention of a network.

`native` is what PyTorch chooses for each call. `flash` and `cudnn` are kernels of PyTorch itself, put first among its
choices: a call that they cannot serve (an attention mask for flash, odd head sizes) goes to the next. `xformers` is the
package. The choice is a property of each attention layer, so that it holds in copies, in taps and in the recompute of
a checkpointed block.

cuDNN's kernel is wrong in backward where the gradient is not laid out in memory as the output is (PyTorch 2.11 with
cuDNN 9.19 on an H200: errors of 100 % in Flux's single blocks), and PyTorch itself may choose it there. `avoid_cudnn`
takes it out of that choice; the layers of `cudnn` lay their gradients out as it needs.
"""

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from operator import methodcaller
from textwrap import shorten
from typing import Any, Literal

import torch
from diffusers import attention_backend
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ...errors import UserError

Name = Literal["auto", "native", "flash", "cudnn", "xformers"]

_ATTENTION = nn.functional.scaled_dot_product_attention
_KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
_FOR_XFORMERS = (AttnProcessor2_0, JointAttnProcessor2_0, XFormersAttnProcessor, XFormersJointAttnProcessor)


def check_attention(name: Name, *, device: str | torch.device, dtype: torch.dtype) -> None:
    """Whether this machine can compute attention so; call it before anything is loaded.

    Args:
        device: device of training.
        dtype: dtype in which the networks compute, under autocast the low one.

    Raises:
        UserError: no such GPU or package, or a kernel that cannot compute in `dtype`.
    """
    if name in ("auto", "native"):
        return
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise UserError(f"attention: {name} needs a CUDA GPU, but this run is on {device}: choose auto or native")
    if name == "xformers":
        _check_package(device, dtype)
    if name in _KERNELS and dtype == torch.float32:
        raise UserError(f"attention: {name} computes in bf16 or fp16 only: choose one of these, or attention: auto")


def avoid_cudnn() -> None:
    """PyTorch no longer chooses cuDNN's attention by itself, in this process; layers set to `cudnn` keep it.

    Its backward was silently wrong (by 100 %, torch 2.11 with cuDNN 9.19) where the gradient is laid out in memory
    otherwise than the output, as in Flux's single blocks.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _check_package(device: str | torch.device, dtype: torch.dtype) -> None:
    if importlib.util.find_spec("xformers") is None:
        raise UserError("attention: xformers needs the package xformers: pip install xformers, or choose auto or flash")
    try:
        ops = importlib.import_module("xformers.ops")
        x = torch.zeros(1, 2, 1, 64, device=device, dtype=dtype)
        ops.memory_efficient_attention(x, x, x)
    except (ImportError, OSError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise UserError(
            f"attention: the installed xformers cannot compute on {device} ({shorten(str(error), 200)}). It must be "
            f"built for PyTorch {torch.__version__}: install the release that is, or choose auto or flash"
        ) from error


def set_attention(net: nn.Module, name: Name) -> None:
    """Sets the attention kernel of a Diffusers network, in place; `auto` leaves it as it is.

    Raises:
        UserError: the network has no attention layers of Diffusers, or ones that xformers would compute wrongly.
    """
    if name == "auto":
        return
    layers = list(_layers(net))
    if not layers:
        raise UserError(f"attention: {name} has no effect: {type(net).__name__} has no attention layers; choose auto")
    if name == "xformers":
        _check_xformers(net, layers)
    _undo(layers)
    with attention_backend("native"):  # restores the process-wide default, which set_attention_backend changes
        methodcaller("set_attention_backend", "xformers" if name == "xformers" else "native")(net)
    for layer in layers:
        if name == "xformers" and not _dispatched(layer):
            layer.set_use_memory_efficient_attention_xformers(True)
        elif name in _KERNELS:
            layer.processor.__class__ = _preferring(layer.processor.__class__, _KERNELS[name])


def _layers(net: nn.Module) -> Iterator[Any]:
    return (module for module in net.modules() if hasattr(module, "processor") and hasattr(module, "set_processor"))


def _dispatched(layer: Any) -> bool:
    """Whether the layer's attention goes through Diffusers' dispatcher, or straight to PyTorch."""
    return hasattr(layer.processor, "_attention_backend")


def _check_xformers(net: nn.Module, layers: list[Any]) -> None:
    """Diffusers replaces any other processor by its plain one, whatever that processor computed."""
    for layer in layers:
        kind = _plain(type(layer.processor))
        if not _dispatched(layer) and not (isinstance(layer, Attention) and kind in _FOR_XFORMERS):
            raise UserError(
                f"attention: xformers cannot replace the {kind.__name__} of {type(net).__name__}: choose flash or auto"
            )


def _undo(layers: list[Any]) -> None:
    for layer in layers:
        layer.processor.__class__ = _plain(type(layer.processor))
        if isinstance(layer.processor, XFormersAttnProcessor | XFormersJointAttnProcessor):
            layer.set_use_memory_efficient_attention_xformers(False)


class _GradientsLikeOutputs(TorchFunctionMode):
    """The gradient that reaches an attention call has the strides of the call's output."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is _ATTENTION and output.requires_grad:
            output.register_hook(functools.partial(_laid_out, strides=output.stride()))
        return output


def _laid_out(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    if gradient.stride() == strides:
        return gradient
    return torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


@functools.cache
def _preferring(kind: type, kernel: SDPBackend) -> type:
    """A processor class like `kind` that puts one kernel of PyTorch before all others."""
    order = [kernel, *(other for other in _REST if other is not kernel)]

    @functools.wraps(kind.__call__)  # Attention.forward asks the signature which arguments it may pass
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(order, set_priority=True), _GradientsLikeOutputs():
            return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "plain": kind})


def _plain(kind: Any) -> Any:
    return getattr(kind, "plain", kind)
