"""A CLIP model as reward: the agreement of an image with its prompt (Radford et al. 2021, arXiv:2103.00020).

PickScore (Kirstain et al. 2023, arXiv:2305.01569) and its like are fine-tuned CLIP models in transformers' format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ...errors import UserError
from .foreign import check_part

PERCENT = 100


@dataclass(frozen=True)
class ClipReward:
    """100 times the cosine of the embeddings of an image and of its prompt.

    Args:
        path: folder of a transformers CLIPModel, with its tokenizer and image processor, or its id on the hub where
            that is in the cache.
    """

    path: str

    def load(self, device: torch.device) -> "ClipScorer":
        """What scores, with its model on the device.

        Raises:
            UserError: there is no such model, or it lacks weights.
        """
        return ClipScorer(*_loaded(self.path)).to(device)


class ClipScorer(nn.Module):
    """Images [B, 3, H, W] in [0, 1] and their prompts -> scores [B], differentiable in the images.

    Args:
        model, tokenizer, processor: of a transformers CLIPModel; the model is frozen.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        super().__init__()
        self._model, self._tokenizer, self._processor = model, tokenizer, processor

    def forward(self, images: Tensor, asked: Sequence[str]) -> Tensor:
        if images.ndim != 4:
            raise UserError(
                f"the reward clip looks at images, and was given {list(images.shape)}: it cannot judge videos"
            )
        if len(asked) != len(images):
            raise UserError(
                f"the reward clip reads prompts, and was given {len(asked)} for {len(images)} images: use data with "
                "prompts, or another reward"
            )
        seen = self._model.get_image_features(_prepared(images, self._processor)).pooler_output
        return PERCENT * F.cosine_similarity(seen, _read(self._model, self._tokenizer, asked))


@torch.no_grad()
def _read(model: Any, tokenizer: Any, asked: Sequence[str]) -> Tensor:
    """Embeddings [B, e] of prompts, each read once, cut where the model's context ends.

    What is padded stands behind a prompt's end, which sees nothing behind it: no mask is needed.
    """
    different = list(dict.fromkeys(asked))
    limit = model.config.text_config.max_position_embeddings
    settings = {"padding": True, "padding_side": "right", "truncation": True, "max_length": limit}
    tokens = tokenizer(different, **settings, return_tensors="pt")["input_ids"]
    read: Tensor = model.get_text_features(tokens.to(model.device)).pooler_output
    place = {text: i for i, text in enumerate(different)}
    return torch.stack([read[place[text]] for text in asked])


def _prepared(images: Tensor, processor: Any) -> Tensor:
    """Images as the model's image processor prepares them: resized, the middle cut out, normalised."""
    shape = _resized(images.shape[-2:], processor.size)
    if shape != list(images.shape[-2:]):
        images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
    cut = processor.crop_size["height"] if processor.do_center_crop else min(shape)
    top, left = ((side - cut) // 2 for side in shape)
    mean, std = (images.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (images[..., top : top + cut, left : left + cut] - mean) / std


def _resized(shape: Sequence[int], size: Any) -> list[int]:
    """Height and width after the processor's `size`: that of the short side, or both sides."""
    if "shortest_edge" not in size:
        return [size["height"], size["width"]]
    short, asked = min(shape), size["shortest_edge"]
    return [asked * side // short for side in shape]


def _loaded(path: str) -> tuple[Any, Any, Any]:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if Path(path).is_dir():
        check_part(Path(path))
    try:
        loaded: Any = transformers.CLIPModel.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
        processor = transformers.CLIPImageProcessor.from_pretrained(path, **local)
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"the reward clip cannot load {path} ({' '.join(str(error).split())[:300]}): give the folder of a "
            "transformers CLIPModel with config, safetensors weights, tokenizer and image processor"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            f"{path} lacks {len(report['missing_keys'])} weights of a CLIPModel, the first being "
            f"{min(report['missing_keys'])}: a reward of random weights rewards noise, copy or download it again"
        )
    return model.eval().requires_grad_(False), tokenizer, processor
