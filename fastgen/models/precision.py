"""What products of float32 numbers may be rounded to: nothing, where it is measured; TF32, where a run allows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, no float32 product, convolution or recurrence is rounded to TF32 or bfloat16; then all is as it was.

    PyTorch has two sets of switches and refuses to read an older one that disagrees with its successors. So both are
    set, but for older ones that the process itself has made unreadable.
    """
    with _precision("highest", "ieee"):
        yield


@contextmanager
def allowing_tf32(wanted: bool) -> Iterator[None]:
    """Within, if it is wanted, float32 products, convolutions and recurrences may be rounded to TF32."""
    with _precision("high", "tf32") if wanted else nullcontext():
        yield


@contextmanager
def _precision(products: str, parts: str) -> Iterator[None]:
    cudnn, all_parts = torch.backends.cudnn, _parts()
    before = _read(torch.get_float32_matmul_precision), _read(lambda: cudnn.allow_tf32)
    precisions = [part.fp32_precision for part in all_parts]
    _set(before[0] and products, None if before[1] is None else parts == "tf32", [parts] * len(all_parts))
    try:
        yield
    finally:
        _set(*before, precisions)


def _parts() -> list[Any]:
    backends: Any = torch.backends
    cpu = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, *cpu]


def _set(products: str | None, convolutions: bool | None, precisions: list[str]) -> None:
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    for part, precision in zip(_parts(), precisions, strict=True):
        part.fp32_precision = precision


def _read(older: Callable[[], Any]) -> Any:
    """The value of an older switch; None where the newer ones say otherwise."""
    try:
        return older()
    except RuntimeError:
        return None
