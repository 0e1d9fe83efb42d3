"""What becomes of a pipeline's times in half precision: some tell their network in the dtype of its sample."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..casting import saved
from ..conditioning import Conditioning
from ..denoiser import CallForm, NetworkDenoiser, output_of
from ..scalars import find_time_embedding
from .arguments import classifier_free
from .components import denoisers_of
from .stock_pipeline import StockPipeline
from .watch import first_value, rehearse

_DYADIC, _BETWEEN = 1 - 2**-6, 2**-12
"""A time that bf16 and fp16 hold, and less than half a step of either to the next one."""


def told_in_bf16(pipe: StockPipeline, form: CallForm, call: Mapping[str, Any], *, steps: int) -> list[Tensor]:
    """The scheduler's timesteps of a stock call in bf16, and what its network is told at each, [n] each in float64."""
    with in_bf16(pipe):
        seen = rehearse(pipe, {**call, **classifier_free(pipe, 1.0)}, steps=steps, rows=2)
    told = [first_value(step.calls[-1].arguments[form.timestep]) for step in seen]
    return [torch.tensor(values, dtype=torch.float64) for values in ([step.timestep for step in seen], told)]


def tells_apart(model: NetworkDenoiser, x: Tensor, cond: Conditioning) -> bool:
    """Whether what the network makes of its time differs between two times that half precision rounds to one.

    Args:
        model: denoiser as it is trained, under its autocast.
        x, cond: [2, ...], two rows alike.
    """
    try:
        layer = find_time_embedding(model.net)
    except ValueError:
        return True  # its time is not known to go through a layer of its own
    t = torch.tensor([_DYADIC, _DYADIC + _BETWEEN], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        (embedded,) = model.tap(x, t, cond, [layer])
    return embedded is None or not torch.equal(*output_of(embedded))


@contextmanager
def in_bf16(pipe: StockPipeline) -> Iterator[None]:
    """Within, the pipeline is in bf16 and its denoisers, for rehearsals alone, are without weights."""
    silent = list(denoisers_of(pipe).values())
    loaded: list[tuple[Tensor, Tensor]] = []
    try:
        for part in pipe.components.values():
            for _, tensor in saved(part) if isinstance(part, nn.Module) else ():
                if tensor.is_floating_point() and tensor.dtype != torch.bfloat16:
                    loaded.append((tensor, tensor.data))
                    halved = tensor.new_empty(0) if part in silent else tensor.data
                    tensor.data = halved.to(torch.bfloat16)
        yield
    finally:
        for tensor, data in loaded:
            tensor.data = data
