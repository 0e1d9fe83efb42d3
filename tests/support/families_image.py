"""Tiny image pipelines whose samples are maps, with random weights, for `families`."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import families_text as text
import families_vae as vaes
import tiny
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import GemmaTokenizer

WIDTH = text.WIDTH


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False)


def dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    return DiTPipeline(transformer=transformer, vae=vaes.kl(), scheduler=_ddim())


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer, encoder = text.clip_without_projection()
    tokenizer_2, encoder_2 = text.clip()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return StableDiffusionXLPipeline(vaes.kl(), encoder, encoder_2, tokenizer, tokenizer_2, unet, scheduler)


def sd3() -> StableDiffusion3Pipeline:
    tokenizer, encoder = text.clip()
    tokenizer_2, encoder_2 = text.clip()
    t5 = tiny.t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=WIDTH,
        joint_attention_dim=tiny.TEXT_WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatch(shift=3.0),
        vae=vaes.kl(8, shift=0.1),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=tiny.t5_encoder(t5),
        tokenizer_3=t5,
    )


def _pixart_transformer(sample_size: int) -> PixArtTransformer2DModel:
    """Told of resolution and aspect ratio if `sample_size` is 128, the one at which the pipeline speaks of them."""
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=tiny.TEXT_WIDTH,
    )
    return transformer


def pixart_alpha() -> PixArtAlphaPipeline:
    t5 = tiny.t5_tokenizer()
    return PixArtAlphaPipeline(t5, tiny.t5_encoder(t5), vaes.kl(), _pixart_transformer(128), _ddim())


def pixart_sigma() -> PixArtSigmaPipeline:
    t5 = tiny.t5_tokenizer()
    return PixArtSigmaPipeline(t5, tiny.t5_encoder(t5), vaes.kl(), _pixart_transformer(8), _ddim())


def _sana_transformer(*, sprint: bool) -> SanaTransformer2DModel:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )
    return transformer


def _instructed_tokenizer(call: Callable[..., Any]) -> GemmaTokenizer:
    """Words of the long instruction that Sana puts before a prompt are single tokens."""
    instruction = inspect.signature(call).parameters["complex_human_instruction"].default
    return text.gemma_tokenizer(words=list(set(re.findall(r"[A-Za-z]{4,}", " ".join(instruction)))))


def sana() -> SanaPipeline:
    transformer, tokenizer = _sana_transformer(sprint=False), _instructed_tokenizer(SanaPipeline.__call__)
    return SanaPipeline(tokenizer, text.gemma(tokenizer), vaes.dc(), transformer, FlowMatch(shift=3.0))


def sana_sprint() -> SanaSprintPipeline:
    transformer, tokenizer = _sana_transformer(sprint=True), _instructed_tokenizer(SanaSprintPipeline.__call__)
    return SanaSprintPipeline(tokenizer, text.gemma(tokenizer), vaes.dc(), transformer, SCMScheduler())


def z_image() -> ZImagePipeline:
    tokenizer = text.qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return ZImagePipeline(FlowMatch(shift=3.0), vaes.kl(shift=0.1), text.qwen3(tokenizer), tokenizer, transformer)


def lumina2() -> Lumina2Pipeline:
    tokenizer = text.gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer, FlowMatch(shift=3.0), vaes.kl(shift=0.1, levels=4), text.gemma(tokenizer), tokenizer
    )


def aura_flow() -> AuraFlowPipeline:
    t5 = tiny.t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=tiny.TEXT_WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    for name, weight in transformer.named_parameters():
        if "to_out" in name:  # louder, because nothing masks the padding, which drowns the prompt
            weight.data.mul_(10)
    return AuraFlowPipeline(t5, text.umt5(t5), vaes.kl(), transformer, FlowMatch(shift=1.73))


def hidream() -> HiDreamImagePipeline:
    """Whatever size is asked for, this pipeline samples 128 x 128 latents: large patches keep them cheap.

    So does an autoencoder without attention over all of them.
    """
    tokenizer, encoder = text.clip(218)
    tokenizer_2, encoder_2 = text.clip(218)
    t5, llama = tiny.t5_tokenizer(), text.llama_tokenizer()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[tiny.TEXT_WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1, 1, 0),
    )
    return HiDreamImagePipeline(
        FlowMatch(shift=3.0),
        vaes.kl(shift=0.1, attention=False),
        encoder,
        tokenizer,
        encoder_2,
        tokenizer_2,
        tiny.t5_encoder(t5),
        t5,
        text.llama_language_model(llama),
        llama,
        transformer,
    )


def cogview4() -> CogView4Pipeline:
    tokenizer = tiny.t5_tokenizer()
    tokenizer.padding_side = "left"
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        pos_embed_max_size=8,
        rope_axes_dim=(16, 16),
    )
    scheduler = FlowMatch(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    return CogView4Pipeline(tokenizer, text.glm(tokenizer), vaes.kl(), transformer, scheduler)
