"""Pipelines of the hub by their published sizes, without weights: for counting where their configs are not here.

Of a text encoder it is said how many parameters it has and what shapes it answers with; its work is not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..casting import cast
from .stock_pipeline import StockPipeline

NOWHERE = torch.device("meta")
MILLION = 10**6
CLIP_L, CLIP_G, T5_XXL, UMT5_XXL = 123 * MILLION, 695 * MILLION, 4762 * MILLION, 5681 * MILLION
GEMMA_2B, QWEN_VL_7B, QWEN3_4B = 2614 * MILLION, 8292 * MILLION, 4022 * MILLION

Told = Callable[[int], tuple[Any, ...]]
"""What `encode_prompt` answers for so many prompts."""


@dataclass(frozen=True)
class Published:
    """A pipeline of the hub.

    Args:
        name: short name that people call it by.
        hub: its hub id.
        pipeline: its Diffusers class.
        network: class of its denoiser, and `settings` what is not that class's default.
        vae: class of its autoencoder, and `vae_settings` likewise.
        scheduler: class of its scheduler, and `noise` its settings.
        texts: parameters of its text encoders, by the names of these components.
        told: what they answer.
        size: height, width and frames that it was trained for.
    """

    name: str
    hub: str
    pipeline: str
    network: str
    vae: str
    texts: Mapping[str, int]
    told: Told
    size: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    vae_settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    noise: Mapping[str, Any] = field(default_factory=dict)

    @property
    def video(self) -> bool:
        """Whether its samples are videos."""
        return "frames" in self.size

    def built(self, dtype: torch.dtype) -> StockPipeline:
        """The pipeline, its networks on the meta device in `dtype`."""
        kind = getattr(diffusers, self.pipeline)
        told = self.told

        def encode_prompt(_: Any, prompt: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            rows = told(len(prompt) if isinstance(prompt, list) else 1)
            cast_rows: tuple[Any, ...] = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, rows)
            return cast_rows

        answering = type(kind.__name__, (kind,), {"encode_prompt": encode_prompt, "__module__": kind.__module__})
        parts: dict[str, Any] = {name: None for name in kind._get_signature_keys(kind)[0]}
        with torch.device(NOWHERE):
            network = getattr(diffusers, self.network)(**self.settings)
            parts |= {"unet" if "unet" in parts else "transformer": network}
            parts |= {"vae": getattr(diffusers, self.vae)(**self.vae_settings)}
            parts |= {name: _Sized(size) for name, size in self.texts.items()}
        for part in parts.values():
            if isinstance(part, nn.Module):
                cast(part, dtype).eval()
        parts["scheduler"] = getattr(diffusers, self.scheduler)(**self.noise)
        optional = {"image_encoder", "feature_extractor", "safety_checker", "transformer_2"}
        needed = {name: part for name, part in parts.items() if name not in optional or part is not None}
        safety = {"safety_checker": None, "feature_extractor": None} if "safety_checker" in parts else {}
        pipe: StockPipeline = answering(**{**needed, **safety})
        return pipe


class _Sized(nn.Module):
    """A text encoder of which only the number of parameters is known, and what SDXL asks it for."""

    config = SimpleNamespace(projection_dim=1280)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)


def _pairs(*shapes: tuple[int, ...]) -> Told:
    """Two tensors of each shape: for the prompts and for the negative prompts."""
    return lambda count: tuple(torch.zeros(count, *shape) for shape in shapes for _ in range(2))


def _masked(tokens: int, width: int) -> Told:
    """Embeddings and their mask, for the prompts and for negative prompts."""
    return lambda count: (torch.zeros(count, tokens, width), torch.ones(count, tokens, dtype=torch.long)) * 2


_KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_KL16 = {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}
_DISCRETE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SQUARE = {"height": 1024, "width": 1024}
_DC_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3

PUBLISHED = {
    one.name: one
    for one in (
        Published(
            name="sd15",
            hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
            pipeline="StableDiffusionPipeline",
            network="UNet2DConditionModel",
            settings={"sample_size": 64, "cross_attention_dim": 768},
            vae="AutoencoderKL",
            vae_settings={**_KL, "sample_size": 512},
            scheduler="PNDMScheduler",
            noise={**_DISCRETE, "timestep_spacing": "leading", "skip_prk_steps": True},
            texts={"text_encoder": CLIP_L},
            told=_pairs((77, 768)),
            size={"height": 512, "width": 512},
        ),
        Published(
            name="sdxl",
            hub="stabilityai/stable-diffusion-xl-base-1.0",
            pipeline="StableDiffusionXLPipeline",
            network="UNet2DConditionModel",
            settings=_XL,
            vae="AutoencoderKL",
            vae_settings={**_KL, "sample_size": 1024, "scaling_factor": 0.13025},
            scheduler="EulerDiscreteScheduler",
            noise=_DISCRETE,
            texts={"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
            told=_pairs((77, 2048), (1280,)),
            size=_SQUARE,
        ),
        Published(
            name="sd3",
            hub="stabilityai/stable-diffusion-3-medium-diffusers",
            pipeline="StableDiffusion3Pipeline",
            network="SD3Transformer2DModel",
            settings={
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 192,
            },
            vae="AutoencoderKL",
            vae_settings={**_KL16, "sample_size": 1024, "scaling_factor": 1.5305},
            noise={"shift": 3.0},
            texts={"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL},
            told=_pairs((333, 4096), (2048,)),
            size=_SQUARE,
        ),
        Published(
            name="flux",
            hub="black-forest-labs/FLUX.1-dev",
            pipeline="FluxPipeline",
            network="FluxTransformer2DModel",
            settings={"guidance_embeds": True},
            vae="AutoencoderKL",
            vae_settings={**_KL16, "sample_size": 1024, "scaling_factor": 0.3611},
            noise={"shift": 3.0, "use_dynamic_shifting": True},
            texts={"text_encoder": CLIP_L, "text_encoder_2": T5_XXL},
            told=lambda count: (torch.zeros(count, 512, 4096), torch.zeros(count, 768), torch.zeros(512, 3)),
            size=_SQUARE,
        ),
        Published(
            name="sana",
            hub="Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            pipeline="SanaPipeline",
            network="SanaTransformer2DModel",
            vae="AutoencoderDC",
            vae_settings={
                "encoder_block_types": _DC_BLOCKS,
                "decoder_block_types": _DC_BLOCKS,
                "scaling_factor": 0.41407,
            },
            noise={"shift": 3.0},
            texts={"text_encoder": GEMMA_2B},
            told=_masked(300, 2304),
            size=_SQUARE,
        ),
        Published(
            name="qwen_image",
            hub="Qwen/Qwen-Image",
            pipeline="QwenImagePipeline",
            network="QwenImageTransformer2DModel",
            vae="AutoencoderKLQwenImage",
            noise={"shift": 1.0, "use_dynamic_shifting": True},
            texts={"text_encoder": QWEN_VL_7B},
            told=lambda count: (torch.zeros(count, 64, 3584), torch.ones(count, 64, dtype=torch.long)),
            size=_SQUARE,
        ),
        Published(
            name="z_image",
            hub="Tongyi-MAI/Z-Image",
            pipeline="ZImagePipeline",
            network="ZImageTransformer2DModel",
            vae="AutoencoderKL",
            vae_settings={**_KL16, "sample_size": 1024, "scaling_factor": 0.3611},
            noise={"shift": 3.0},
            texts={"text_encoder": QWEN3_4B},
            told=lambda count: ([torch.zeros(64, 2560)] * count, [torch.zeros(64, 2560)] * count),
            size=_SQUARE,
        ),
        Published(
            name="ltx",
            hub="Lightricks/LTX-Video",
            pipeline="LTXPipeline",
            network="LTXVideoTransformer3DModel",
            vae="AutoencoderKLLTXVideo",
            noise={"shift": 1.0, "use_dynamic_shifting": True},
            texts={"text_encoder": T5_XXL},
            told=_masked(128, 4096),
            size={"height": 512, "width": 704, "frames": 161},
        ),
        Published(
            name="wan",
            hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            pipeline="WanPipeline",
            network="WanTransformer3DModel",
            settings={"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
            vae="AutoencoderKLWan",
            scheduler="UniPCMultistepScheduler",
            noise={"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
            texts={"text_encoder": UMT5_XXL},
            told=_pairs((512, 4096)),
            size={"height": 480, "width": 832, "frames": 81},
        ),
    )
}
"""By their short names."""


def published(path: str) -> Published | None:
    """The pipeline of a hub id, if its sizes are known."""
    return next((one for one in PUBLISHED.values() if one.hub == path), None)
