"""Feature extractors: frozen vision models that turn images into points of a feature space."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.pipelines.foreign import check_part

from .precision import Precision, computing
from .preprocessing import Preprocess
from .weights import ALONE, fingerprint


@dataclass(frozen=True, eq=False)
class Sight:
    """What a model makes of a batch.

    Attributes:
        features: float32 [B, d].
        logits: float32 [B, K] of its classification head; None for a model without one.
    """

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(Protocol):
    """What an evaluation needs of a model."""

    @property
    def identity(self) -> str:
        """Model, weights, preprocessing and feature in words; equal exactly where features are comparable."""

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def resizes(self) -> bool:
        """Whether images of any size become one size, so that a set may mix sizes."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes that logits are for; empty without a classification head."""

    def see(self, images: Tensor) -> Sight:
        """Features of uint8 images [B, 3, H, W] and, from a classifier, logits."""

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32 features [B, d]."""


class TransformersExtractor:
    """A local `transformers` image model, with weights in float32 whatever they are stored in.

    The feature is `pooler_output` flattened, or the mean of `last_hidden_state` over positions where the model
    pools nothing. Weights come from safetensors files only, and no code from the folder is run.

    Args:
        folder: model folder as `save_pretrained` writes it.
        preprocess: how its input is made.
        device: device that the model runs on; images are moved there.
        precision: "tf32" is faster on a GPU and another identity.

    Raises:
        UserError: the folder is missing or damaged, not an image model, or lacks weights of the model.
    """

    def __init__(
        self,
        folder: Path,
        preprocess: Preprocess,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.device = torch.device(device)
        self._precision = precision
        self.resizes = preprocess.resizes
        self._preprocess = preprocess
        self._loaded = _load(folder)
        self._loaded.model.to(self.device)
        self.dim = self._dimension(folder)
        body = type(self._loaded.model.base_model).__name__
        feature = "pooled" if self._loaded.pools else "mean state"
        self.identity = f"{body} {fingerprint(folder)}, {preprocess.identity}, {feature} {self.dim}, {precision}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that logits are for; empty without a classification head."""
        return self._loaded.classes

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32 features [B, d] on the extractor's device."""
        return self.see(images).features

    @torch.inference_mode()
    def see(self, images: Tensor) -> Sight:
        """Features and, from a classifier, logits of uint8 images [B, 3, H, W], in one forward pass."""
        pixels = self._preprocess.apply(images.to(self.device))
        model = self._loaded.model
        bodies: list[Any] = []
        hook = model.base_model.register_forward_hook(lambda _module, _args, output: bodies.append(output))
        try:
            with computing(self._precision):
                output = model(pixel_values=pixels)
        finally:
            hook.remove()
        features = _pooled(bodies[-1]) if self._loaded.pools else _mean_state(bodies[-1])
        return Sight(features.float(), output.logits.float() if self.classes else None)

    def _dimension(self, folder: Path) -> int:
        try:
            return self(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1]
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise UserError(
                f"extractor {folder} cannot look at images made as '{self._preprocess.identity}' "
                f"({' '.join(str(error).split())[:200]}); give the --extractor-size that it was trained at, or another "
                "model"
            ) from error


@dataclass(frozen=True, eq=False)
class _Loaded:
    model: Any
    classes: tuple[str, ...]
    pools: bool  # whether its pooler_output exists and comes from trained weights


def _load(folder: Path) -> _Loaded:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"extractor {folder} has no config.json; give the folder of a transformers image model as "
            "save_pretrained writes it (config.json, model.safetensors)"
        )
    check_part(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **ALONE)
        classifies = any(name.endswith("ForImageClassification") for name in config.architectures or ())
        kind: Any = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
        model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **ALONE,
        )
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"extractor {folder} cannot be loaded as a transformers image model: {' '.join(str(error).split())[:300]} "
            "It needs config.json and safetensors weights of a model that transformers knows"
        ) from error
    untrained_pooler = _check_complete(folder, model, set(report["missing_keys"]))
    classes = tuple(config.id2label[index] for index in range(config.num_labels)) if classifies else ()
    return _Loaded(model.eval().requires_grad_(False), classes, pools=not untrained_pooler)


def _check_complete(folder: Path, model: Any, missing: set[str]) -> bool:
    """Whether only a pooler lacks weights, as in a body cut out of a classifier; other gaps are refused."""
    if model.base_model.main_input_name != "pixel_values":
        raise UserError(
            f"extractor {folder} is a {type(model).__name__}, which reads {model.base_model.main_input_name}; give "
            "an image model (of a text and image model, the folder of its vision part)"
        )
    others = sorted(name for name in missing if not name.startswith("pooler."))
    if others:
        raise UserError(
            f"extractor {folder} lacks {len(others)} weights of a {type(model).__name__}, the first being "
            f"{others[0]}; random ones would take their place. Copy or download the folder again."
        )
    return bool(missing)


def _pooled(output: Any) -> Tensor:
    """`pooler_output` flattened, or the mean state of a model that pools nothing."""
    pooled: Tensor | None = output.get("pooler_output")
    return _mean_state(output) if pooled is None else pooled.flatten(1)


def _mean_state(output: Any) -> Tensor:
    """Mean over positions of tokens [B, n, d] or of a map [B, d, h, w]."""
    states: Tensor = output["last_hidden_state"]
    return states.mean(1) if states.ndim == 3 else states.mean((2, 3))
