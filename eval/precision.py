"""How exactly extractors compute: float32 throughout, or TF32 where a user asked for speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32"]


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Sets matrix products and cuDNN convolutions, whose own default is TF32, for the block."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
