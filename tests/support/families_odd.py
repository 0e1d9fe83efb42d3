"""Tiny pipelines of stock classes whose calls differ from the usual in one way each, with seeded random weights."""

from typing import Any

import families_image as image
import families_text as text
import families_vae as vaes
import tiny
import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMochi,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    IFPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    PNDMScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from families import LARGE, SQUARE, UNBINNED, Family
from families_video import like_wan
from transformers import SmolLM3Config, SmolLM3ForCausalLM


def _adapter(**settings: Any) -> MotionAdapter:
    common = {"motion_layers_per_block": 1, "motion_num_attention_heads": 2, "motion_norm_num_groups": 4}
    return MotionAdapter(block_out_channels=(8, 16), **common, **settings).eval()


def animate_diff() -> AnimateDiffPipeline:
    """Frames beside each other in the batch of the network's text."""
    parts = dict(tiny.stable_diffusion().components)
    kept = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="trailing")
    return AnimateDiffPipeline(**kept, motion_adapter=_adapter(), scheduler=scheduler)


def animate_diff_xl() -> AnimateDiffSDXLPipeline:
    parts = dict(image.sdxl().components)
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    adapter = _adapter(use_motion_mid_block=False)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1)
    return AnimateDiffSDXLPipeline(**{n: parts[n] for n in names}, motion_adapter=adapter, scheduler=scheduler)


def bria_fibo() -> BriaFiboPipeline:
    """The text encoder's layers as a list of tensors."""
    tokenizer = text.qwen_tokenizer()
    config = SmolLM3Config(
        vocab_size=128_001,  # an empty prompt is the last of these tokens
        hidden_size=text.WIDTH,
        intermediate_size=text.WIDTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=3,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * text.WIDTH,
        text_encoder_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatch(use_dynamic_shifting=True)
    return BriaFiboPipeline(transformer, scheduler, vaes.wan(), SmolLM3ForCausalLM(config).eval(), tokenizer)


def mochi() -> MochiPipeline:
    """Its own schedule of sigmas, which divides by half the number of steps."""
    t5 = tiny.t5_tokenizer()
    vae = AutoencoderKLMochi(
        in_channels=15,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=12,
        layers_per_block=(1, 1, 1, 1, 1),
        temporal_expansions=(1, 2, 3),
        spatial_expansions=(2, 2, 2),
        add_attention_block=(False, False, False, False, False),
    ).eval()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=tiny.TEXT_WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return MochiPipeline(FlowMatch(invert_sigmas=True), vae, tiny.t5_encoder(t5), t5, transformer)


def allegro() -> AllegroPipeline:
    """An autoencoder that decodes in tiles only."""
    t5 = tiny.t5_tokenizer()
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_size=16,
    ).eval()
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=2,
        sample_height=2,
        sample_frames=2,
        caption_channels=tiny.TEXT_WIDTH,
    )
    scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    return AllegroPipeline(t5, tiny.t5_encoder(t5), vae, transformer, scheduler)


def anyflow() -> AnyFlowPipeline:
    """A time for each frame, and a second one."""
    t5 = tiny.t5_tokenizer()
    transformer = like_wan(AnyFlowTransformer3DModel)
    return AnyFlowPipeline(t5, text.umt5(t5), transformer, vaes.wan(), FlowMapEulerDiscreteScheduler())


def sky_reels() -> SkyReelsV2Pipeline:
    """Cleans prompts by a package that it does not look for."""
    t5 = tiny.t5_tokenizer()
    transformer = like_wan(SkyReelsV2Transformer3DModel)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return SkyReelsV2Pipeline(t5, text.umt5(t5), transformer, vaes.wan(), scheduler)


def sana_video() -> SanaVideoPipeline:
    """Counts its frames under another name."""
    tokenizer = text.gemma_tokenizer()
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=text.WIDTH,
        rope_max_seq_len=32,
    )
    return SanaVideoPipeline(tokenizer, text.gemma(tokenizer), vaes.wan(), transformer, FlowMatch(shift=7.0))


class _Safe(torch.nn.Module):
    """In place of a network that looks for what must not be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, _prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos() -> Cosmos2TextToImagePipeline:
    """Writes settings into its scheduler and walks by its sigmas."""
    t5 = tiny.t5_tokenizer()
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=tiny.TEXT_WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
    )
    scheduler = FlowMatch(use_karras_sigmas=True)
    return Cosmos2TextToImagePipeline(tiny.t5_encoder(t5), t5, transformer, vaes.wan(), scheduler, _Safe())


def deep_floyd() -> IFPipeline:
    """Reads from its scheduler whether the network's output holds a variance."""
    t5 = tiny.t5_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=16,
        encoder_hid_dim=tiny.TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(variance_type="learned_range")
    return IFPipeline(t5, tiny.t5_encoder(t5), unet, scheduler, None, None, None, requires_safety_checker=False)


def helios() -> HeliosPipeline:
    """Makes a video in chunks, each from those before."""
    t5 = tiny.t5_tokenizer()
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=tiny.TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
    )
    return HeliosPipeline(t5, text.umt5(t5), vaes.wan(), HeliosScheduler(), transformer)


def pseudo_numerical() -> DiffusionPipeline:
    """Stable Diffusion under the scheduler that its first releases have."""
    pipe = tiny.stable_diffusion()
    config = dict(pipe.scheduler.config) | {"skip_prk_steps": True}
    pipe.register_modules(scheduler=PNDMScheduler.from_config(config))
    return pipe


ODD = {
    family.name: family
    for family in (
        Family("animate_diff", animate_diff, SQUARE | {"num_frames": 3}),
        Family("animate_diff_xl", animate_diff_xl, SQUARE | {"num_frames": 3}),
        Family("bria_fibo", bria_fibo, SQUARE),
        Family("mochi", mochi, SQUARE | {"num_frames": 7}),
        Family("allegro", allegro, SQUARE | {"num_frames": 8}),
        Family("anyflow", anyflow, SQUARE | {"num_frames": 5}),
        Family("sky_reels", sky_reels, SQUARE | {"num_frames": 5}),
        Family("sana_video", sana_video, LARGE | UNBINNED | {"frames": 5}),
        Family("cosmos", cosmos, SQUARE),
        Family("deep_floyd", deep_floyd, {"height": 8, "width": 8}),
        Family("helios", helios, SQUARE | {"num_frames": 5}),
        Family("pseudo_numerical", pseudo_numerical, SQUARE),
    )
}
