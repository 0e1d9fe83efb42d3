"""A safety checker that finds fault with some pictures of a tiny Stable Diffusion."""

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def with_checker(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same pipeline with random concepts, a part of which its pictures come near."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SMALL, image_size=8, patch_size=4)
    text = CLIPTextConfig(**SMALL, vocab_size=10, max_position_embeddings=8)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=16)
    )
    checker.concept_embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(0.45)
    checker.special_care_embeds_weights.data.fill_(1.0)
    looking = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return StableDiffusionPipeline(**{**pipe.components, "safety_checker": checker, "feature_extractor": looking})
