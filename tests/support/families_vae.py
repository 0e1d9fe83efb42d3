"""Tiny autoencoders with two levels and a normalisation that is nobody's default, for `families`."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)


def kl(channels: int = 4, *, shift: float | None = None, levels: int = 2, attention: bool = True) -> AutoencoderKL:
    """Half the resolution, or halved `levels` - 1 times."""
    return AutoencoderKL(
        block_out_channels=(8,) * (levels - 1) + (16,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.7,
        shift_factor=shift,
        mid_block_add_attention=attention,
    ).eval()


def flux2() -> AutoencoderKLFlux2:
    """Half the resolution, four channels that become 16 by patches of 2 x 2, normalised by running statistics."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.7, 16))
    vae.bn.running_var.copy_(torch.linspace(0.3, 2.0, 16))
    return vae.eval()


def dc() -> AutoencoderDC:
    """Half the resolution."""
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41,
    ).eval()


def _statistics(channels: int) -> dict[str, list[float]]:
    return {
        "latents_mean": torch.linspace(-0.6, 0.4, channels).tolist(),
        "latents_std": torch.linspace(0.5, 2.5, channels).tolist(),
    }


def wan() -> AutoencoderKLWan:
    """A quarter of the resolution, every frame after the first in fours."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        scale_factor_temporal=4,
        scale_factor_spatial=4,
        **_statistics(4),
    ).eval()


def qwen() -> AutoencoderKLQwenImage:
    """Half the resolution."""
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], **_statistics(4)
    ).eval()


def ltx() -> AutoencoderKLLTXVideo:
    """A quarter of the resolution, every frame after the first in pairs; eight channels, uneven statistics."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        downsample_type=("conv", "conv"),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
        scaling_factor=0.8,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    vae.latents_mean.copy_(torch.linspace(-0.6, 0.4, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2.5, 8))
    return vae.eval()


def cogvideox() -> AutoencoderKLCogVideoX:
    """Half the resolution, every frame after the first in pairs."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        scaling_factor=0.7,
    ).eval()


def hunyuan_video() -> AutoencoderKLHunyuanVideo:
    """A quarter of the resolution, every frame after the first in fours."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.6,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()
