"""Builders of tiny stock pipelines with seeded random weights: offline, each well below a second.

`import tiny` works in every test, because pytest puts the folder of a test file on the path.
Save one with `tiny.ddpm().save_pretrained(folder)` to get a stock folder.
"""

import string

import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLASSES = 10  # real classes of `class_conditional`; label 10 is the null label
TEXT_WIDTH = 32


def unet(*, size: int = 8, channels: int = 3, num_class_embeds: int | None = None, seed: int = 0) -> UNet2DModel:
    """A two-level pixel UNet in eval mode."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    )
    return network.eval()


def ddpm(*, size: int = 8, channels: int = 3, seed: int = 0) -> DDPMPipeline:
    """Unconditional pixels, epsilon prediction, linear betas."""
    return DDPMPipeline(unet=unet(size=size, channels=channels, seed=seed), scheduler=DDPMScheduler())


def class_conditional(*, size: int = 8, channels: int = 3, seed: int = 0) -> ConsistencyModelPipeline:
    """A class-conditional many-step teacher: ten classes, a null label, v-prediction."""
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    network = unet(size=size, channels=channels, num_class_embeds=CLASSES + 1, seed=seed)
    return ConsistencyModelPipeline(unet=network, scheduler=scheduler)


def consistency(*, size: int = 8, num_class_embeds: int | None = None, seed: int = 0) -> ConsistencyModelPipeline:
    """A consistency model with its own stochastic scheduler; unconditional unless classes are asked for."""
    return ConsistencyModelPipeline(
        unet=unet(size=size, num_class_embeds=num_class_embeds, seed=seed),
        scheduler=CMStochasticIterativeScheduler(),
    )


def autoencoder(*, shift_factor: float | None = None, seed: int = 0) -> AutoencoderKL:
    """Three channels to four, half the resolution."""
    torch.manual_seed(seed)
    codec = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift_factor,
    )
    return codec.eval()


def dit(*, layers: int = 1, seed: int = 0) -> DiTPipeline:
    """A latent transformer of 1000 classes; the pipeline's null label is 1000."""
    torch.manual_seed(seed)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    return DiTPipeline(transformer=transformer.eval(), vae=autoencoder(seed=seed), scheduler=DDIMScheduler())


def clip_tokenizer() -> CLIPTokenizer:
    """Tokens are single characters and the one merge "ab", built without any file."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += ["ab", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("a", "b")], model_max_length=16)


def clip_text_model(tokenizer: CLIPTokenizer, *, seed: int = 0) -> CLIPTextModel:
    """One layer, `TEXT_WIDTH` wide."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def stable_diffusion(*, seed: int = 0) -> StableDiffusionPipeline:
    """Text to 16 px images through 8 px latents with the scheduler settings of Stable Diffusion 1.5."""
    tokenizer = clip_tokenizer()
    torch.manual_seed(seed)
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(seed=seed),
        text_encoder=clip_text_model(tokenizer, seed=seed),
        tokenizer=tokenizer,
        unet=denoiser.eval(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Tokens are single characters, built without any file."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    characters = [(character, -2.0) for character in string.ascii_lowercase + string.digits]
    return T5Tokenizer(vocab=[*special, *characters], extra_ids=0)


def t5_encoder(tokenizer: T5Tokenizer, *, seed: int = 0) -> T5EncoderModel:
    """One layer, `TEXT_WIDTH` wide."""
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=TEXT_WIDTH, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def flux(*, guidance_embeds: bool = True, seed: int = 0) -> FluxPipeline:
    """Flow matching on packed latents, text to images; ask for 16 x 16 px, the default size is larger."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(4, 4, 8),
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1, seed=seed),
        text_encoder=clip_text_model(clip, seed=seed),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5, seed=seed),
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )
