"""Whole stock pipelines of real size with random weights: denoiser and autoencoder as published, thin text encoders."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionXLPipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .networks import DISCRETE, SIZES, Size

CHARACTERS = string.ascii_lowercase + string.digits
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 1024,
}
_THIN_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 64}
_FLUX = Size(
    "FluxTransformer2DModel",
    {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    (4096, 64),
)
_THIN_FLUX = replace(
    _FLUX,
    settings={
        **_FLUX.settings,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 4, 8),
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
    },
)


@dataclass(frozen=True)
class Model:
    """A pipeline that a shipped config distils.

    Args:
        config: of `configs/`, without its ending.
        kind: "sdxl" or "flux".
        network: its denoiser.
        vae: config of its autoencoder.
        widths: of its two text encoders.
        pooled: width of what a prompt is projected to.
        tokens: of its prompts.
        settings: overrides of the config.
    """

    config: str
    kind: str
    network: Size
    vae: Mapping[str, Any]
    widths: tuple[int, int]
    pooled: int
    tokens: int = 77
    settings: tuple[str, ...] = ()

    def built(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The pipeline, its denoiser made on the device."""
        torch.manual_seed(0)
        network = self.network.built(device, dtype)
        with torch.device(device):
            pipe = {"sdxl": self._stable_diffusion_xl, "flux": self._flux}[self.kind](network)
        pipe.register_modules(scheduler=type(pipe.scheduler)(**pipe.scheduler.config))  # whose numbers are the host's
        return pipe.to(dtype=dtype)

    def _stable_diffusion_xl(self, unet: nn.Module) -> Any:
        first, second = (_clip_tokenizer(self.tokens) for _ in range(2))
        return StableDiffusionXLPipeline(
            vae=self._autoencoder(latent_channels=4, scaling_factor=0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(self._clip_config(first, self.widths[0])).eval(),
            text_encoder_2=CLIPTextModelWithProjection(self._clip_config(second, self.widths[1])).eval(),
            tokenizer=first,
            tokenizer_2=second,
            unet=unet,
            scheduler=EulerDiscreteScheduler(**DISCRETE, timestep_spacing="leading", steps_offset=1),
        )

    def _flux(self, transformer: nn.Module) -> Any:
        first, second = _clip_tokenizer(77), _t5_tokenizer(self.tokens)
        wide = T5Config(
            vocab_size=len(second), d_model=self.widths[1], d_kv=8, d_ff=self.widths[1], num_layers=1, num_heads=2
        )
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=self._autoencoder(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
            text_encoder=CLIPTextModel(self._clip_config(first, self.widths[0])).eval(),
            tokenizer=first,
            text_encoder_2=T5EncoderModel(wide).eval(),
            tokenizer_2=second,
            transformer=transformer,
        )

    def _autoencoder(self, **settings: Any) -> AutoencoderKL:
        return AutoencoderKL(**{**_VAE, **self.vae, **settings}).eval()

    def _clip_config(self, tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
        return clip_config(tokenizer, width=width, projection=self.pooled)


def clip_config(tokenizer: CLIPTokenizer, *, width: int, projection: int) -> CLIPTextConfig:
    """Two thin layers: SDXL reads the last but one."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _clip_tokenizer(length: int) -> CLIPTokenizer:
    """Tokens are single characters."""
    tokens = [*CHARACTERS, *(f"{one}</w>" for one in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def _t5_tokenizer(length: int) -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    characters = [(character, -2.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=[*special, *characters], extra_ids=0, model_max_length=length)


def _tiny(config: str, kind: str, network: Size, widths: tuple[int, int]) -> Model:
    small = ("student.height=64", "student.width=64", "lora.rank=1", "student.steps=[2]")
    return Model(config, kind, network, _THIN_VAE, widths, 16, tokens=16, settings=small)


MODELS = {
    "sdxl": Model("sdxl/dmd2_4step_lora", "sdxl", SIZES["sdxl"], {}, (768, 1280), 1280),
    "flux": Model("flux/dmd2_4step_lora", "flux", _FLUX, {}, (768, 4096), 768, tokens=512),
    "tiny": _tiny("sdxl/dmd2_4step_lora", "sdxl", SIZES["tiny"], (8, 8)),
    "tiny_flux": _tiny("flux/dmd2_4step_lora", "flux", _THIN_FLUX, (16, 32)),
}
"""SDXL at 1024 px (2.567 B parameters in its denoiser), Flux (11.9 B), and one of each for tests."""
