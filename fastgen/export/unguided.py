"""Students that a plain call does not guide."""

import copy
from typing import Protocol, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ..models.pipelines.stock_pipeline import StockPipeline

_WIDTH = 16  # width of the embedding, which is not used: any will do
_HIGH = 7.5
SILENT = "time_embedding.cond_proj.weight"
"""The embedding, of zeros, that an exported UNet has beside the trained weights."""


class _Guiding(StockPipeline, Protocol):
    """A pipeline that says whether it guides."""

    _guidance_scale: float

    @property
    def do_classifier_free_guidance(self) -> bool: ...


def unguided(pipe: StockPipeline) -> StockPipeline:
    """The same pipeline, its guidance switched off where a network can say so; else the pipeline itself.

    Stable Diffusion's pipelines do not guide a UNet that has an embedding for the guidance scale. One with zero
    weight leaves every output as it is.
    """
    unet = pipe.components.get("unet")
    if not isinstance(unet, UNet2DConditionModel) or unet.config["time_cond_proj_dim"] is not None:
        return pipe
    silent = copy.copy(pipe)
    silent.register_modules(unet=_with_embedding(unet))
    return silent if _guides(pipe) and not _guides(silent) else pipe


def _with_embedding(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    with torch.device("meta"):
        wider: UNet2DConditionModel = UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=_WIDTH)
    zeros = torch.zeros(wider.get_parameter(SILENT).shape, dtype=unet.dtype)
    wider.load_state_dict({**unet.state_dict(), SILENT: zeros}, assign=True)
    return wider.eval().requires_grad_(False)


def _guides(pipe: StockPipeline) -> bool:
    """Whether a high guidance scale makes the pipeline guide."""
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        return False
    trial = cast(_Guiding, copy.copy(pipe))
    trial._guidance_scale = _HIGH
    return bool(trial.do_classifier_free_guidance)
