"""Models of images and text in the CLIP format: CLIP score, CMMD, and rewards such as PickScore."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.pipelines.foreign import check_part

from .extractors import Sight
from .precision import Precision, computing
from .preprocessing import preprocess_for
from .weights import ALONE, fingerprint

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""uint8 images [B, 3, H, W] and their prompts -> scores [B], higher is better."""


class Clip:
    """A local `CLIPModel` with its tokenizer and image processor; also a feature extractor of image embeddings.

    Raises:
        UserError: the folder is no CLIP model, or lacks its tokenizer or image processor.
    """

    classes: tuple[str, ...] = ()
    resizes = True

    def __init__(self, folder: Path, *, device: str | torch.device, precision: Precision = "float32") -> None:
        self.device = torch.device(device)
        self._precision = precision
        self._preprocess = preprocess_for(folder, None)
        self._model, self._tokenizer = _load(folder)
        self._model.to(self.device)
        self.dim = int(self._model.config.projection_dim)
        self._scale = float(self._model.logit_scale.exp())
        self.identity = f"CLIP {fingerprint(folder)}, {self._preprocess.identity}, embedding {self.dim}, {precision}"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32 embeddings [B, e], not normalised."""
        return self.see(images).features

    @torch.inference_mode()
    def see(self, images: Tensor) -> Sight:
        with computing(self._precision):
            pixels = self._preprocess.apply(images.to(self.device))
            return Sight(self._model.get_image_features(pixels).pooler_output, None)

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, e] of prompts, cut where the model's context ends."""
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        with computing(self._precision):
            embeddings: Tensor = self._model.get_text_features(**tokens.to(self.device)).pooler_output
        return embeddings

    def alignment(self, embeddings: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine between images [B, e] and their prompts, [B]; the CLIP score is 100 times its mean."""
        return F.cosine_similarity(embeddings, self.text(prompts))

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """logit_scale * cosine, [B]: PickScore (Kirstain et al. 2023, arXiv 2305.01569) and its like."""
        return self._scale * self.alignment(self(images), prompts)


def _load(folder: Path) -> tuple[Any, Any]:
    check_part(folder)
    try:
        loaded: Any = transformers.CLIPModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **ALONE
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **ALONE)
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"{folder} cannot be loaded as a CLIP model ({' '.join(str(error).split())[:300]}); it needs the config, "
            "safetensors weights, tokenizer and preprocessor of a transformers CLIPModel"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            f"{folder} lacks {len(report['missing_keys'])} weights of a CLIPModel, the first being "
            f"{min(report['missing_keys'])}; random ones would take their place. Copy or download the folder again."
        )
    return model.eval().requires_grad_(False), tokenizer
