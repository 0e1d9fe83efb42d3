"""Tiny text-to-image pipelines whose samples are packed into tokens, with random weights, for `families`."""

import families_text as text
import families_vae as vaes
import tiny
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

WIDTH = text.WIDTH


def flux() -> FluxPipeline:
    tokenizer, encoder = text.clip_without_projection()
    t5 = tiny.t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(4, 4, 8),
        joint_attention_dim=tiny.TEXT_WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=FlowMatch(use_dynamic_shifting=True),
        vae=vaes.kl(shift=0.1),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=tiny.t5_encoder(t5),
        tokenizer_2=t5,
        transformer=transformer,
    )


def _flux2_transformer(*, guidance_embeds: bool) -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return transformer


def flux2() -> Flux2Pipeline:
    tokenizer = text.qwen_tokenizer()
    return Flux2Pipeline(
        scheduler=FlowMatch(use_dynamic_shifting=True),
        vae=vaes.flux2(),
        text_encoder=text.mistral(tokenizer, layers=30),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=True),
    )


def flux2_klein() -> Flux2KleinPipeline:
    tokenizer = text.qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=FlowMatch(use_dynamic_shifting=True),
        vae=vaes.flux2(),
        text_encoder=text.qwen3_language_model(tokenizer, layers=27),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=False),
    )


def qwen_image() -> QwenImagePipeline:
    tokenizer = text.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    return QwenImagePipeline(
        FlowMatch(use_dynamic_shifting=True),
        vaes.qwen(),
        text.qwen25_vision(tokenizer),
        tokenizer,
        transformer,
    )


def chroma() -> ChromaPipeline:
    t5 = tiny.t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=tiny.TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        FlowMatch(use_dynamic_shifting=True), vaes.kl(shift=0.1), tiny.t5_encoder(t5), t5, transformer
    )


def krea2() -> Krea2Pipeline:
    tokenizer = text.qwen_tokenizer()
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return Krea2Pipeline(
        FlowMatch(use_dynamic_shifting=True),
        vaes.qwen(),
        text.qwen3_vision(tokenizer),
        tokenizer,
        transformer,
        text_encoder_select_layers=(0, 1, 2),
    )
