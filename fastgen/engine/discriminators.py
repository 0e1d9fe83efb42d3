"""The discriminator of a stage: heads on a denoiser among its roles, or on a vision model that sees decoded samples."""

from collections.abc import Mapping

import torch

from ..config.discriminator import DiscriminatorConfig
from ..config.schema import StageConfig
from ..errors import UserError, did_you_mean
from ..models.contract import Denoiser
from ..models.discriminator import Discriminator, FeatureDiscriminator, block_layers, default_layers
from ..models.image_part import Example
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.vision import eyes
from ..models.pixel_discriminator import PixelDiscriminator


def discriminator_of(pipeline: Pipeline, denoisers: Mapping[str, Denoiser], stage: StageConfig) -> FeatureDiscriminator:
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
    return _on_a_denoiser(pipeline, denoisers, spec, example).to(device)


def _on_a_denoiser(
    pipeline: Pipeline, denoisers: Mapping[str, Denoiser], spec: DiscriminatorConfig, example: Example
) -> Discriminator:
    automatic = "fake_score" if "fake_score" in denoisers else "real_score"
    reader = automatic if spec.backbone == "auto" else spec.backbone
    if reader not in denoisers:
        raise UserError(f"discriminator.backbone is {reader}, a role that this objective does not have")
    found = (pipeline.network, denoisers[reader], example)
    layers = block_layers(*found) if spec.layers == "blocks" else spec.layers or default_layers(*found)
    known = [name for name, _ in pipeline.network.named_modules() if name]
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known, most=3, otherwise=f"it has e.g. {', '.join(known[:3])}")
        raise UserError(f"discriminator.layers names {unknown[0]!r}, which the network does not have; {hint}")
    return Discriminator(denoisers[reader], layers, example, heads=spec.heads)
