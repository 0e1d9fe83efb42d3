"""Tiny text-to-video pipelines with seeded random weights, for `families`."""

import inspect
import re
from typing import TypeVar

import families_text as text
import families_vae as vaes
import tiny
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

Network = TypeVar("Network")


def ltx() -> LTXPipeline:
    t5 = tiny.t5_tokenizer()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=tiny.TEXT_WIDTH,
    )
    return LTXPipeline(FlowMatch(), vaes.ltx(), tiny.t5_encoder(t5), t5, transformer)


def wan() -> WanPipeline:
    t5 = tiny.t5_tokenizer()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(t5, text.umt5(t5), vaes.wan(), scheduler, like_wan(WanTransformer3DModel))


def wan_of_two() -> WanPipeline:
    """Wan 2.2; of four steps two lie on each side of the boundary."""
    one = wan()
    return WanPipeline(**one.components | {"transformer_2": like_wan(WanTransformer3DModel)}, boundary_ratio=0.875)


def like_wan(kind: type[Network]) -> Network:
    """A network of Wan's or of one that has its settings."""
    return kind(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=tiny.TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def cogvideox() -> CogVideoXPipeline:
    t5 = tiny.t5_tokenizer()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=tiny.TEXT_WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        temporal_compression_ratio=2,
        max_text_seq_length=226,
    )
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return CogVideoXPipeline(t5, tiny.t5_encoder(t5), vaes.cogvideox(), transformer, scheduler)


def hunyuan_video() -> HunyuanVideoPipeline:
    template = inspect.signature(HunyuanVideoPipeline.__call__).parameters["prompt_template"].default["template"]
    llama = text.llama_tokenizer(words=list(set(re.findall(r"[a-z]{4,}", template))))
    clip, encoder = text.clip_without_projection(77)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    return HunyuanVideoPipeline(
        text.llama(llama),
        llama,
        transformer,
        vaes.hunyuan_video(),
        FlowMatch(shift=7.0),
        encoder,
        clip,
    )


def latte() -> LattePipeline:
    t5 = tiny.t5_tokenizer()
    transformer = LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=tiny.TEXT_WIDTH,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    return LattePipeline(t5, tiny.t5_encoder(t5), vaes.kl(), transformer, DDIMScheduler(clip_sample=False))
