"""A CLIP model of random weights, with all the files that it is loaded from."""

from pathlib import Path

import tiny
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor


def write_clip(folder: Path) -> Path:
    """It sees 32 px."""
    torch.manual_seed(0)
    tokenizer = tiny.clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 16, **ends, **small},
        vision_config={"image_size": 32, "patch_size": 8, **small},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder
