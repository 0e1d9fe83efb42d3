"""A DINOv2 of random weights, with the files that it is loaded from."""

from pathlib import Path

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model


def write_vision(folder: Path) -> Path:
    """It sees 28 px in 2 x 2 patches, in four blocks of width 16."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder
