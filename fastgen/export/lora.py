"""A trained adapter as a LoRA folder that `load_lora_weights` reads, in Diffusers or Kohya keys."""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder
from ..models.experts import networks_in
from ..models.watch import denoiser_name, denoisers_of, network_of
from ..notes import Notes
from .card import HERE, lora_card
from .export import forget_origin, notes_of, with_scheduler
from .scheduler import Serving
from .stacked import StackedLoRA

Keys = Literal["diffusers", "kohya"]
FILES: dict[Keys, str] = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "kohya_lora_weights.safetensors",
}
_SAVE = "save_lora_weights"
_KOHYA_PREFIX: dict[type, str] = {UNet2DConditionModel: "lora_unet_", FluxTransformer2DModel: "lora_transformer_"}
_KOHYA_FLUX = re.compile(
    r"(single_)?transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)"
    r"|context_embedder|norm_out\.linear|proj_out|x_embedder|time_text_embed\.\w+_embedder\.linear_\d"
)


@dataclass(frozen=True)
class Adapter:
    """One trained adapter.

    Args:
        weights: layer name + ".lora_A.weight" [rank, in, ...] or ".lora_B.weight" [out, rank, ...] -> weight.
        config: that it was made by; says the alpha of every layer.
    """

    weights: Mapping[str, Tensor]
    config: LoraConfig

    @property
    def layers(self) -> set[str]:
        """The names of the layers that it changes."""
        return {_split(key)[0] for key in self.weights}

    def within(self, start: str) -> "Adapter":
        """The part in the layers whose names begin so, without that beginning."""
        if not start:
            return self
        weights = {key.removeprefix(start): w for key, w in self.weights.items() if key.startswith(start)}
        return Adapter(weights, replace(self.config, target_modules=sorted({_split(key)[0] for key in weights})))

    def alpha(self, layer: str) -> float:
        """Alpha of a layer: its update is alpha / rank times B A."""
        own = (value for name, value in self.config.alpha_pattern.items() if re.fullmatch(rf"(.*\.)?({name})", layer))
        return float(next(own, self.config.lora_alpha))


def export_lora(
    pipe: DiffusionPipeline,
    adapter: Adapter,
    notes: Notes,
    folder: Path,
    servings: Sequence[Serving],
    *,
    stacked: Sequence[StackedLoRA] = (),
    keys: Sequence[Keys] = ("diffusers",),
) -> Path:
    """Saves an adapter with the schedulers that it was trained for and a card that loads all of it.

    Args:
        pipe: the base pipeline.
        stacked: LoRAs that the teacher was made with; `base + these` is what the adapter belongs to.
        keys: a weight file for each.

    Raises:
        UserError: the pipeline has no LoRA loader, the adapter holds more than a LoRA, or a conversion is not known.
    """
    _check_loader(pipe)
    _check_weights(adapter)
    if "kohya" in keys:
        check_kohya(pipe, adapter.layers)
    with atomic_folder(folder, replace=True) as temporary:
        for kind in keys:
            _SAVERS[kind](pipe, adapter, temporary)
        for serving in servings:
            serving.scheduler.save_pretrained(temporary / serving.folder / "scheduler")
        forget_origin(temporary)
        notes.write(temporary)
        (temporary / "README.md").write_text(_cards(pipe, notes, servings, stacked, keys[0]), encoding="utf-8")
    return folder


def written(pipe: DiffusionPipeline, folder: str, kind: Keys) -> tuple[StackedLoRA, ...]:
    """The LoRAs of an export, as they are loaded: one for each denoiser of the pipeline."""
    first = StackedLoRA(folder, FILES[kind])
    second = replace(first, file=FILES[kind].replace(".", "_2."), second=True)
    return (first, second)[: len(denoisers_of(pipe))]


def kohya_state(pipe: DiffusionPipeline, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter in the keys of kohya-ss and ComfyUI.

    All layers share one alpha, since Diffusers' own reader loses those that differ; what a layer's own alpha says
    beyond that is in its weights.

    Raises:
        UserError: no conversion is known for this network or one of its layers.
    """
    check_kohya(pipe, adapter.layers)
    prefix = _KOHYA_PREFIX[type(network_of(pipe))]
    names = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    state: dict[str, Tensor] = {}
    for key, weight in adapter.weights.items():
        layer, part = _split(key)
        flat, common = prefix + layer.replace(".", "_"), float(adapter.config.lora_alpha)
        factor = adapter.alpha(layer) / common if part == ".lora_B.weight" else 1.0
        state[flat + names[part]] = (factor * weight.detach()).contiguous().cpu()
        state[flat + ".alpha"] = torch.tensor(common)
    return state


def _save_diffusers(pipe: DiffusionPipeline, adapter: Adapter, folder: Path) -> None:
    name = denoiser_name(pipe)
    for lora, start in zip(written(pipe, "", "diffusers"), networks_in(network_of(pipe)), strict=True):
        part = adapter.within(start)
        weights = {key: weight.detach().contiguous().cpu() for key, weight in part.weights.items()}
        settings = {**part.config.to_dict(), "base_model_name_or_path": None}
        layers = convert_state_dict_to_diffusers(weights) if name == "unet" else weights
        type(pipe).save_lora_weights(
            folder, weight_name=lora.file, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": settings}
        )


def _save_kohya(pipe: DiffusionPipeline, adapter: Adapter, folder: Path) -> None:
    save_file(kohya_state(pipe, adapter), folder / FILES["kohya"], metadata={"format": "pt"})


_SAVERS = {"diffusers": _save_diffusers, "kohya": _save_kohya}


def _cards(
    pipe: DiffusionPipeline, notes: Notes, servings: Sequence[Serving], stacked: Sequence[StackedLoRA], kind: Keys
) -> str:
    """The card of the first serving, and the body of each other one's below it."""
    texts = [
        lora_card(
            with_scheduler(pipe, serving.scheduler),
            notes_of(notes, serving),
            stacked=stacked,
            loras=written(pipe, HERE, kind),
            subfolder=serving.folder,
        )
        for serving in servings
    ]
    return "\n".join([texts[0], *(text.split("---\n", 2)[2].lstrip() for text in texts[1:])])


def has_loader(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline's class loads and saves LoRAs of its denoiser."""
    saver = next(
        (vars(kind)["save_lora_weights"] for kind in type(pipe).__mro__ if "save_lora_weights" in vars(kind)), None
    )
    return saver is not None and f"{denoiser_name(pipe)}_lora_layers" in inspect.signature(saver.__func__).parameters


def _check_loader(pipe: DiffusionPipeline) -> None:
    if not has_loader(pipe):
        raise UserError(
            f"{type(pipe).__name__} cannot load LoRAs, so a LoRA of it would be of no use to anybody: export the whole "
            "pipeline, into which the adapter is merged"
        )


def _check_weights(adapter: Adapter) -> None:
    others = [key for key in adapter.weights if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others:
        raise UserError(
            f"the adapter also trains {others[0]} and {len(others) - 1} more, which no LoRA file can hold: export the "
            "whole pipeline, or train with lora.norms=false"
        )


def check_kohya(pipe: DiffusionPipeline, layers: Collection[str]) -> None:
    """Raises UserError where no conversion is known for the pipeline's network or for one of these layers of it."""
    kind = type(getattr(pipe, denoiser_name(pipe)))
    if kind not in _KOHYA_PREFIX:
        raise UserError(
            f"no Kohya keys are known for {kind.__name__}, only for the UNet of Stable Diffusion and for Flux: use "
            "Diffusers keys"
        )
    unknown = sorted(layer for layer in layers if not _KOHYA_FLUX.fullmatch(layer))
    if kind is FluxTransformer2DModel and unknown:
        raise UserError(
            f"Diffusers reads no Kohya keys for {unknown[0]} of {kind.__name__} and {len(unknown) - 1} more layers: "
            "use Diffusers keys, or train with lora.targets on the attention alone"
        )


def _split(key: str) -> tuple[str, str]:
    part = ".lora_A.weight" if key.endswith(".lora_A.weight") else ".lora_B.weight"
    return key.removesuffix(part), part
