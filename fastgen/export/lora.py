"""A trained adapter as a LoRA folder that `load_lora_weights` reads, in Diffusers or Kohya keys."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, atomic_json
from ..manifest import write_manifest
from ..models.experts import networks_in
from ..models.low_rank import DOWN_KEY, UP_KEY
from ..models.pipelines.components import denoiser_name, network_of
from ..models.pipelines.notes import Notes
from ..models.pipelines.stacked import FILES, Keys, written
from ..models.pipelines.stock_pipeline import LoRAPipeline, StockPipeline
from .adapter import Adapter
from .card import HERE, lora_card
from .comfyui import FILE as WORKFLOW
from .comfyui import Node, workflow
from .export import CARDS, forget_origin, notes_of, with_scheduler
from .fidelity import check_adapter
from .header import sort_metadata
from .kohya import check_kohya, kohya_state
from .scheduler_export import SchedulerExport

_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")  # what Diffusers 0.35 to 0.42 ask of metadata


def export_lora(
    pipe: StockPipeline,
    adapter: Adapter,
    notes: Notes,
    folder: Path,
    schedules: Sequence[SchedulerExport],
    *,
    keys: Sequence[Keys] = ("diffusers",),
) -> Path:
    """Saves an adapter with the schedulers that it was trained for and a card that loads all of it.

    Args:
        pipe: the base pipeline.
        notes: name the LoRAs that the teacher was made with; `base + these` is what the adapter belongs to.
        keys: a weight file for each.

    Raises:
        UserError: the pipeline has no LoRA loader, the adapter holds more than a LoRA, or a conversion is not known.
    """
    writer = _with_loader(pipe)
    _check_weights(adapter)
    check_adapter(adapter.weights)
    if "kohya" in keys:
        check_kohya(network_of(pipe), adapter.layers)
    with atomic_folder(folder, replace=True) as temporary:
        for kind in keys:
            _SAVERS[kind](writer, adapter, temporary)
        for schedule in schedules:
            schedule.scheduler.save_pretrained(temporary / schedule.folder / "scheduler")
        forget_origin(temporary)
        notes.write(temporary)
        flow = _workflow(pipe, notes, schedules[0], keys)
        if flow is not None:
            atomic_json(temporary / WORKFLOW, flow)
        text = _cards(pipe, notes, schedules, keys, flow=flow is not None)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        write_manifest(temporary, but=CARDS)
    return folder


def _workflow(
    pipe: StockPipeline, notes: Notes, schedule: SchedulerExport, keys: Sequence[Keys]
) -> dict[str, Node] | None:
    """A ComfyUI workflow for the first schedule; None where ComfyUI cannot read the LoRA."""
    if "kohya" not in keys:
        return None
    given = [int(notes.arguments.get(name, 0)) for name in ("height", "width")]
    height, width = (side or _own_size(pipe) for side in given)
    return workflow(network_of(pipe), notes_of(notes, schedule), lora=FILES["kohya"], size=(height, width))


def _own_size(pipe: StockPipeline) -> int:
    """The side of a picture of a call that names none, in pixels."""
    side, factor = getattr(pipe, "default_sample_size", None), getattr(pipe, "vae_scale_factor", 8)
    sample = side or getattr(network_of(pipe).config, "sample_size", None) or 64
    return int(sample) * int(factor)


def _save_diffusers(pipe: LoRAPipeline, adapter: Adapter, folder: Path) -> None:
    name = denoiser_name(pipe)
    for lora, start in zip(written(pipe, "", "diffusers"), networks_in(network_of(pipe)), strict=True):
        part = adapter.within(start).plain()
        config = part.config
        settings = {name: getattr(config, name) for name in _SETTINGS} | {"target_modules": sorted(part.layers)}
        layers = _as_diffusers(part.weights) if name == "unet" else dict(part.weights)
        type(pipe).save_lora_weights(
            folder, weight_name=lora.file, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": settings}
        )
        sort_metadata(folder / lora.file)


def _as_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's keys in Diffusers' older form, where that has one for each layer.

    It has none for conv_in and conv_out, and Diffusers reads all keys of a file as it reads the first.
    """
    older: dict[str, Tensor] = convert_state_dict_to_diffusers(dict(weights))
    return dict(weights) if any(key.endswith(DOWN_KEY) for key in older) else older


def _save_kohya(pipe: StockPipeline, adapter: Adapter, folder: Path) -> None:
    save_file(kohya_state(network_of(pipe), adapter), folder / FILES["kohya"], metadata={"format": "pt"})


_SAVERS = {"diffusers": _save_diffusers, "kohya": _save_kohya}


def _cards(
    pipe: StockPipeline, notes: Notes, schedules: Sequence[SchedulerExport], keys: Sequence[Keys], *, flow: bool
) -> str:
    """The card of the first schedule, and the body of each other one's below it."""
    texts = [
        lora_card(
            with_scheduler(pipe, schedule.scheduler),
            notes_of(notes, schedule),
            loras=written(pipe, HERE, keys[0]),
            kohya=FILES["kohya"] if "kohya" in keys else None,
            subfolder=schedule.folder,
            flow=flow and schedule is schedules[0],
        )
        for schedule in schedules
    ]
    return "\n".join([texts[0], *(text.split("---\n", 2)[2].lstrip() for text in texts[1:])])


def known_keys(pipe: StockPipeline, layers: Sequence[str]) -> tuple[Keys, ...]:
    """The kinds of keys that are known for all these layers of the pipeline's network: a file for every client."""
    try:
        check_kohya(network_of(pipe), layers)
    except UserError:
        return ("diffusers",)
    return ("diffusers", "kohya")


def has_loader(pipe: StockPipeline) -> TypeGuard[LoRAPipeline]:
    """Whether the pipeline's class loads and saves LoRAs of its denoiser."""
    saver = next(
        (vars(kind)["save_lora_weights"] for kind in type(pipe).__mro__ if "save_lora_weights" in vars(kind)), None
    )
    return saver is not None and f"{denoiser_name(pipe)}_lora_layers" in inspect.signature(saver.__func__).parameters


def _with_loader(pipe: StockPipeline) -> LoRAPipeline:
    if has_loader(pipe):
        return pipe
    raise UserError(
        f"{type(pipe).__name__} cannot load LoRAs, so a LoRA of it would be of no use to anybody: export the whole "
        "pipeline, into which the adapter is merged"
    )


def _check_weights(adapter: Adapter) -> None:
    others = [key for key in adapter.weights if not key.endswith((DOWN_KEY, UP_KEY))]
    if others:
        raise UserError(
            f"the adapter also trains {others[0]} and {len(others) - 1} more, which no LoRA file can hold: export the "
            "whole pipeline, or train with lora.norms=false"
        )
