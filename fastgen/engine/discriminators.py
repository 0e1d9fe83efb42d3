"""The discriminator of a stage: heads on a denoiser among its roles or of its own, or on a vision model."""

import copy
from collections.abc import Mapping, Sequence

import torch

from ..config.discriminator import DiscriminatorConfig, reader_of
from ..config.schema import StageConfig
from ..errors import UserError, did_you_mean
from ..models.casting import cast
from ..models.contract import RoleNetwork
from ..models.denoiser import NetworkDenoiser
from ..models.discriminator import Discriminator, FeatureDiscriminator, block_layers, default_layers
from ..models.image_part import Example
from ..models.own_backbone import OwnDiscriminator
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.vision import eyes
from ..models.pixel_discriminator import PixelDiscriminator
from ..models.retargeted import RetargetedDenoiser
from ..process import Process
from .dtypes import autocast_of


def discriminator_of(
    pipeline: Pipeline, denoisers: Mapping[str, RoleNetwork], stage: StageConfig
) -> FeatureDiscriminator:
    """The discriminator that the stage's objective asks for.

    Raises:
        UserError: what it is to read is not there.
    """
    device = next(pipeline.network.parameters()).device
    x = torch.zeros((2, *pipeline.shape), device=device)
    cond = pipeline.condition(2, labels=torch.tensor([0, 1]), prompts=["a", "a longer one"]).to(device)
    example = (x, torch.full((2,), 0.5, dtype=torch.float64, device=device), cond)
    spec = stage.discriminator
    if stage.objective.needs.pixels:
        assert spec.network is not None, "StageConfig refuses such a stage without"
        vision = eyes(spec.network, spec.blocks, device)
        return PixelDiscriminator(pipeline.codec.images_of, vision, example).to(device)
    reader, width = reader_of(spec, denoisers), 1 + stage.objective.needs.jumps
    if reader == "own":
        backbone: RoleNetwork = _own(pipeline, stage, next(iter(denoisers.values())).process)
        layers = _layers(backbone, spec, example)
        return OwnDiscriminator(backbone, layers, example, heads=spec.heads, width=width).to(device)
    if reader not in denoisers:
        raise UserError(f"discriminator.backbone is {reader}, a role that this objective does not have")
    layers = _layers(denoisers[reader], spec, example)
    return Discriminator(denoisers[reader], layers, example, heads=spec.heads, width=width).to(device)


def _own(pipeline: Pipeline, stage: StageConfig, spoken: Process) -> NetworkDenoiser | RetargetedDenoiser:
    """A copy of the teacher's network that speaks the roles' process."""
    net = cast(copy.deepcopy(pipeline.network), torch.float32)
    backbone = pipeline.speaking(net, autocast=autocast_of(net, stage.train.precision, pipeline.told_in))
    return backbone if spoken is pipeline.reading.process else RetargetedDenoiser(backbone, spoken)


def _layers(backbone: RoleNetwork, spec: DiscriminatorConfig, example: Example) -> Sequence[str]:
    """The names of the layers that are read.

    Raises:
        UserError: the network has no such layers.
    """
    if spec.layers == "blocks":
        return block_layers(backbone.net, backbone, example)
    if spec.layers is None:
        return default_layers(backbone.net, backbone, example)
    known = [name for name, _ in backbone.net.named_modules() if name]
    unknown = [layer for layer in spec.layers if layer not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known, most=3, otherwise=f"it has e.g. {', '.join(known[:3])}")
        raise UserError(f"discriminator.layers names {unknown[0]!r}, which the network does not have; {hint}")
    return spec.layers
