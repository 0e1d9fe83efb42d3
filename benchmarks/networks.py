"""Networks of real size, built from their configs on the device, and what a stock pipeline would tell them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning, mapped

TOKENS, CLASSES = 77, 10
DISCRETE = {"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Size:
    """A network and the shapes that it is told.

    Args:
        network: its Diffusers class, and `settings` its config.
        shape: of one sample.
        told: argument name -> shape of one sample's row; an empty shape is a class label.
        scheduler: config of the DDIM scheduler that gives its output a meaning.
        sample: name of the argument that takes x_t.
    """

    network: str
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    told: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=lambda: DISCRETE)
    sample: str = "sample"

    def built(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The network with random weights, made where it is used."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                network: nn.Module = getattr(diffusers, self.network).from_config(dict(self.settings))
        finally:
            torch.set_default_dtype(before)
        return network.eval()

    def rows(self, count: int, dtype: torch.dtype) -> Conditioning:
        """Random conditioning of `count` rows on the CPU, with an unconditional twin."""
        stream = torch.Generator().manual_seed(0)

        def row(shape: tuple[int, ...]) -> Tensor:
            drawn = torch.randn((count, *shape), generator=stream).to(dtype)
            return drawn if shape else torch.randint(CLASSES, (count,), generator=stream)

        plain, null = (mapped(self.told, row) for _ in range(2))
        return Conditioning(count, plain, null=Conditioning(count, null))


def _stable_diffusion_xl(width: int, *, deep: tuple[int, ...], heads: tuple[int, ...], text: int) -> dict[str, Any]:
    """The config of SDXL's U-Net of other widths and depths."""
    channels = (width, 2 * width, 4 * width)
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": deep,
        "attention_head_dim": heads,
        "cross_attention_dim": text,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
    }


def _wan(heads: int, layers: int, *, width: int, text: int) -> dict[str, Any]:
    """The config of Wan 2.1's transformer of another size."""
    size = {"num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers, "text_dim": text}
    return {**size, "ffn_dim": heads * width * 35 // 6, "freq_dim": 256, "in_channels": 16, "out_channels": 16}


SIZES = {
    "sdxl": Size(
        "UNet2DConditionModel",
        {
            **_stable_diffusion_xl(320, deep=(1, 2, 10), heads=(5, 10, 20), text=2048),
            "sample_size": 128,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
        },
        (4, 128, 128),
        {"encoder_hidden_states": (TOKENS, 2048), "added_cond_kwargs": {"text_embeds": (1280,), "time_ids": (6,)}},
    ),
    "cifar": Size(
        "UNet2DModel",
        {
            "sample_size": 32,
            "block_out_channels": (256, 256, 256),
            "layers_per_block": 3,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "num_class_embeds": CLASSES + 1,
        },
        (3, 32, 32),
        {"class_labels": ()},
        {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    ),
    "wan": Size(
        "WanTransformer3DModel",
        _wan(12, 30, width=128, text=4096),
        (16, 21, 60, 104),
        {"encoder_hidden_states": (512, 4096)},
        sample="hidden_states",
    ),
    "tiny wan": Size(
        "WanTransformer3DModel",
        _wan(2, 2, width=12, text=16),
        (16, 2, 4, 8),
        {"encoder_hidden_states": (6, 16)},
        sample="hidden_states",
    ),
    "tiny": Size(
        "UNet2DConditionModel",
        {
            **_stable_diffusion_xl(8, deep=(1, 1, 1), heads=(1, 2, 4), text=16),
            "sample_size": 8,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 16,
        },
        (4, 8, 8),
        {"encoder_hidden_states": (3, 16), "added_cond_kwargs": {"text_embeds": (16,), "time_ids": (6,)}},
    ),
}
"""SDXL at 1024 px (2.567 B parameters), Wan 2.1's 1.3 B at 81 frames of 480 x 832 (32,760 tokens), a class-conditional
U-Net for CIFAR-10 (47.7 M), and two for tests."""
