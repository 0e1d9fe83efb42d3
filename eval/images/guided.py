"""Classifier-free guidance for class-conditional pixel pipelines whose own call has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.pipelines.stock_pipeline import StockPipeline


@contextmanager
def guiding(pipe: StockPipeline, guidance: float, null_label: int | None) -> Iterator[None]:
    """Inside the block each call of the pipeline's UNet answers uncond + w (cond - uncond), from one call on pairs.

    What is combined is the network's own output; the scheduler stays the pipeline's, with its clipping.

    Args:
        guidance: w; 1 is none.
        null_label: the label that means "no class".

    Raises:
        UserError: the pipeline is of another kind, or has no such label.
    """
    if not isinstance(pipe, ConsistencyModelPipeline) or null_label is None:
        raise UserError(
            f"guidance {guidance:g} was asked for, but {type(pipe).__name__} has no guidance and "
            f"{'no label that means no class' if null_label is None else 'is not class-conditional'}. Leave it out."
        )

    def pair(_unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sample, time, *rest = args
        labels = kwargs["class_labels"]
        both = torch.cat([labels, torch.full_like(labels, null_label)])
        return (torch.cat([sample, sample]), time, *rest), kwargs | {"class_labels": both}

    def combine(_unet: nn.Module, _args: Any, _kwargs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        cond, uncond = output[0].chunk(2)
        return (uncond + guidance * (cond - uncond), *output[1:])

    unet: nn.Module = pipe.components["unet"]
    hooks = [
        unet.register_forward_pre_hook(pair, with_kwargs=True, prepend=True),
        unet.register_forward_hook(combine, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
