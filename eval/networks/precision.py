"""How exactly networks compute: extractors in float32 or, for speed, TF32; pipelines under autocast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from fastgen.models.pipelines.stock_pipeline import StockPipeline

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


@contextmanager
def autocasting(pipe: StockPipeline, device: torch.device) -> Iterator[None]:
    """Inside the block each network of `pipe` computes in bfloat16 and answers in float32.

    Guidance and scheduler stay in float32. A scheduler that is given a bfloat16 output rounds the parts of its step one
    by one; their errors no longer cancel and add noise at every step.
    """
    parts = pipe.components
    networks = [part for part in parts.values() if isinstance(part, nn.Module)]
    cast = torch.autocast(device.type, dtype=torch.bfloat16)
    for network in networks:
        network.forward = convert_outputs_to_fp32(cast(network.forward))
    try:
        yield
    finally:
        for network in networks:
            del network.forward
