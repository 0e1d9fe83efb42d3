"""What a discriminator reads is the image's: in every family a place of its features is a patch of the sample."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)
from families import FAMILIES, probed
from quick import FORMS, some
from torch import Tensor, nn

from fastgen.config.schema import StageConfig
from fastgen.engine.roles import build_roles
from fastgen.errors import UserError
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.models.discriminator import Discriminator, default_layers
from fastgen.models.image_part import image_parts
from fastgen.models.walk import Plan
from fastgen.process import even_grid
from fastgen.process.scheduler import from_scheduler

REFUSED = {"cogview4", "latte", "wan_of_two"}
U_NETS = {"ddpm", "consistency", "stable_diffusion", "sdxl"}
every_family = pytest.mark.parametrize("name", some((name for name in FAMILIES if name not in REFUSED), *FORMS))
T = torch.full((2,), 0.5, dtype=torch.float64)


def judge(name: str, *layers: str) -> Discriminator:
    """As a run builds it."""
    spec = {"layers": layers or None}
    objective = {"name": "dmd2", "gan": {"weight": 1.0}, "guidance": 1.0}
    stage = {"name": "gan", "objective": objective, "train": {"images": 4, "batch": 2}, "discriminator": spec}
    config = StageConfig.model_validate(stage)
    return build_roles(probed(name), config, plan=Plan([even_grid(1)]), weights=None, seed=0).discriminator


def conditioned(name: str, *prompts: str) -> Conditioning:
    return probed(name).condition(2, labels=torch.tensor([3, 1]), prompts=prompts)


def token_of(spot: tuple[int, ...], shape: tuple[int, ...], count: int) -> tuple[int, int]:
    """The place of a spot of a frame among its frame's tokens in raster order, and how many a frame has."""
    if len(shape) == 2:
        return spot[0], count
    height, width = shape[-2:]
    patch = next(p for p in (1, 2, 8) if height > p and count % ((height // p) * (width // p)) == 0)
    wide = width // patch
    return (spot[0] // patch) * wide + spot[1] // patch, (height // patch) * wide


def spots(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Some tokens of a packed sample, or pixels of a map or of all frames of a video."""
    if len(shape) == 2:
        yield from [(0,), (shape[0] // 3,), (shape[0] - 1,)]
    else:
        height, width = shape[-2:]
        yield from [(0, 0), (height // 3, width - 1), (height - 1, width // 2)]


def check_places(name: str, *layers: str) -> None:
    """Where a spot of the sample is moved, no place moves as far as its own, whatever text it is called with."""
    reads, shape = judge(name, *layers), probed(name).shape
    cond = conditioned(name, "a red bird in the snow", "fox")
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (before,) = reads.features(x, T, cond)
        for spot in spots(shape):
            moved = x.clone()
            (moved[:, spot[0]] if len(shape) == 2 else moved[..., spot[0], spot[1]]).add_(1.0)
            change = (reads.features(moved, T, cond)[0] - before).abs().amax(dim=2)
            wanted, frame = token_of(spot, shape, before.shape[1])
            assert (change.argmax(dim=1) % frame == wanted).all(), (reads.layers, spot)


@every_family
def test_moving_the_image_moves_the_logits(name: str):
    reads, cond = judge(name), conditioned(name, "two", "a longer one")
    nn.init.normal_(reads.heads[0].logit.weight)
    x = torch.randn(2, 2, *probed(name).shape, generator=torch.Generator().manual_seed(1))
    assert (reads(x[0], T, cond) != reads(x[1], T, cond)).all()
    assert reads.features(x[0], T, cond)[0].ndim == (4 if name in U_NETS else 3)


@pytest.mark.parametrize("name", some((name for name in FAMILIES if name not in {*REFUSED, *U_NETS}), *FORMS))
def test_a_place_of_what_is_read_is_a_patch_of_the_sample(name: str):
    """By default, and at the first block of every stack that the image passes through."""
    pipeline = probed(name)
    example = torch.zeros(2, *pipeline.shape), T, conditioned(name, "a", "a longer one")
    stacks = [f"{child}.0" for child, m in pipeline.network.named_children() if isinstance(m, nn.ModuleList)]
    parts = image_parts(pipeline.speaking(pipeline.network), stacks, example)
    read = [(layer,) for layer, part in zip(stacks, parts, strict=True) if part]
    assert read
    for layers in [(), *read]:
        check_places(name, *layers)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("hunyuan_video", "context_embedder.token_refiner.refiner_blocks.0"),
        ("hidream", "caption_projection.0"),
        ("flux", "transformer_blocks.0.norm1_context.linear"),
    ],
)
def test_a_layer_that_the_image_does_not_pass_through_is_refused_by_name(name: str, layer: str):
    with pytest.raises(UserError, match=f"discriminator.layers names '{layer}', which returns nothing of the image"):
        judge(name, layer)


# Stacks as deep as real ones


def flux_call(net: nn.Module, tokens: int, text: int) -> dict[str, Tensor]:
    config, device = net.config, net.device
    return {
        "encoder_hidden_states": torch.randn(1, text, config.joint_attention_dim, device=device),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim, device=device),
        "img_ids": torch.zeros(tokens, 3, device=device),
        "txt_ids": torch.zeros(text, 3, device=device),
    }


def sd3_call(net: nn.Module, tokens: int, text: int) -> dict[str, Tensor]:
    told = flux_call(net, tokens, text)
    return {name: told[name] for name in ("encoder_hidden_states", "pooled_projections")}


def qwen_call(net: nn.Module, tokens: int, text: int) -> dict[str, Tensor]:
    states = torch.randn(1, text, net.config.joint_attention_dim, device=net.device)
    side = int(tokens**0.5)
    mask = torch.ones(1, text, dtype=torch.long, device=net.device)
    return {"encoder_hidden_states": states, "encoder_hidden_states_mask": mask, "img_shapes": [[(1, side, side)]]}


REAL = {
    "flux": (
        FluxTransformer2DModel,
        {"num_layers": 19, "num_single_layers": 38, "in_channels": 64},
        {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)},
        {"num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32},
        flux_call,
        (1024, 64),
        512,
    ),
    "sd3": (
        SD3Transformer2DModel,
        {"num_layers": 24, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        {"num_attention_heads": 24, "caption_projection_dim": 1536},
        {"num_attention_heads": 1, "attention_head_dim": 16, "caption_projection_dim": 16, "joint_attention_dim": 32},
        sd3_call,
        (16, 64, 64),
        333,
    ),
    "qwen_image": (
        QwenImageTransformer2DModel,
        {"num_layers": 60},
        {"num_attention_heads": 24},
        {"num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32},
        qwen_call,
        (1024, 64),
        1024,  # as many as the image has
    ),
}
READ = {
    "flux": ("single_transformer_blocks.19", 3072),
    "sd3": ("transformer_blocks.12", 1536),
    "qwen_image": ("transformer_blocks.30", 3072),
}


class Returned(Exception):
    """What a layer returned."""


def stop_with(_layer: nn.Module, _told: Any, output: Any) -> None:
    raise Returned(output)


@pytest.mark.parametrize("name", some(REAL, "flux"))  # which has stacks of both kinds
def test_of_a_real_stack_the_middle_block_is_read_at_the_images_1024_tokens(name: str):
    """Measured on a narrow network as deep, and seen on the meta device in the shapes of the real one."""
    kind, deep, wide, narrow, call, shape, text = REAL[name]
    twin = kind(**deep, **narrow).eval()
    form = CallForm(sample="hidden_states", timestep="timestep", slope=1e-3)
    backbone = NetworkDenoiser(twin, from_scheduler(FlowMatchEulerDiscreteScheduler()), form)
    told = Conditioning(1, shared=call(twin, 1024, text))
    example = torch.zeros(1, *shape), torch.full((1,), 0.5, dtype=torch.float64), told
    layers = default_layers(twin, backbone, example)
    (part,) = image_parts(backbone, layers, example)
    layer, width = READ[name]
    assert layers == (layer,)
    assert part.stream == 1
    with torch.device("meta"):
        real = kind(**deep, **wide)
        real.get_submodule(layer).register_forward_hook(stop_with)
        with pytest.raises(Returned) as stopped:
            real(torch.zeros(1, *shape), timestep=torch.zeros(1), **call(real, 1024, text))
    assert part.of(stopped.value.args[0], told).shape == (1, 1024, width)
