"""A vision model of transformers whose blocks a discriminator reads: DINOv2, CLIP, SigLIP, ViT and their like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ...errors import UserError
from .foreign import check_part, unasked

HEADS = 4
"""Blocks that are read where none are named, spread evenly up to the last (StyleGAN-T, arXiv:2301.09515)."""


class Eyes(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> tokens [B, N, D] of each block that is read.

    Images are seen as a whole, squeezed to the model's square.

    Args:
        model: frozen; returns hidden states of tokens.
        size: sides of the images that it sees, in pixels.
        mean, std: [3] each, of the images in [0, 1] that it was trained on.
        blocks: numbers of the blocks that are read, from 1; where not given, four of them.

    Raises:
        UserError: the model has not so many blocks, or they return no tokens.
    """

    def __init__(
        self, model: Any, *, size: int, mean: Tensor, std: Tensor, blocks: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self._model, self._size = model, size
        self._mean, self._std = (values.reshape(3, 1, 1) for values in (mean, std))
        seen = self._states(torch.zeros((1, 3, size, size), device=mean.device))
        count = len(seen) - 1
        if count < 1 or any(state.ndim != 3 for state in seen):
            raise UserError(
                f"a {type(model).__name__} returns no sequence of tokens in each block, which discriminator.network is "
                "read for: give a vision transformer, such as DINOv2 or CLIP"
            )
        self._blocks = tuple(blocks or sorted({-(-count * (i + 1) // HEADS) for i in range(HEADS)}))
        if not all(1 <= block <= count for block in self._blocks):
            raise UserError(f"discriminator.blocks is {list(self._blocks)}, but the network has blocks 1 to {count}")

    def forward(self, images: Tensor) -> list[Tensor]:
        sides = (self._size, self._size)
        if images.shape[-2:] != sides:
            images = F.interpolate(images, sides, mode="bicubic", antialias=True)
        states = self._states(((images + 1) / 2 - self._mean) / self._std)
        return [states[block].float() for block in self._blocks]

    def _states(self, images: Tensor) -> Sequence[Tensor]:
        states: Sequence[Tensor] = self._model(pixel_values=images, output_hidden_states=True).hidden_states
        return states


def eyes(path: str, blocks: Sequence[int] | None, device: torch.device) -> Eyes:
    """The vision model of a folder, or of the hub's id where that is in the cache; of a CLIP model its vision part.

    Raises:
        UserError: there is no such model, it lacks weights, or it returns no tokens.
    """
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if Path(path).is_dir():
        check_part(Path(path))
    try:
        with unasked():
            model, report = transformers.AutoModel.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
            told, _ = transformers.CLIPImageProcessor.get_image_processor_dict(path, local_files_only=True)
        mean, std = (torch.tensor(told[name], device=device) for name in ("image_mean", "image_std"))
        size = _side(told)
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"discriminator.network cannot load {path} ({' '.join(str(error).split())[:300]}): give the folder of a "
            "transformers vision model with config, safetensors weights and preprocessor_config.json"
        ) from error
    vision = getattr(model, "vision_model", model)
    if missing := [key for key in report["missing_keys"] if "pool" not in key]:
        raise UserError(
            f"{path} lacks {len(missing)} weights of a {type(model).__name__}, the first being {min(missing)}: copy or "
            "download it again"
        )
    vision = vision.to(device).eval().requires_grad_(False)
    return Eyes(vision, size=size, mean=mean, std=std, blocks=blocks)


def _side(told: dict[str, Any]) -> int:
    """The side in pixels of the square that the processor hands to the model."""
    size = told["crop_size"] if told.get("do_center_crop") else told["size"]
    sides = [size] if isinstance(size, int) else list(size.values())
    return int(min(sides))
