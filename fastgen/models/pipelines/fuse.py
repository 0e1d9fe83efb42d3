"""A user's LoRAs become part of the base: Diffusers says where each update belongs, the file how large it is.

A trained role's adapter is merged by `fastgen.models.merging`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ...errors import UserError, first_few
from ..low_rank import DOWN_KEY
from .components import network_of
from .loading import HUB_FAILURES, HUB_ID, check_weights, line
from .lora_file import Update, normal_form, read_updates, sketch
from .source import LoRAFile
from .stock_pipeline import LoRAPipeline, StockPipeline, reads_loras

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
USUAL = "pytorch_lora_weights.safetensors"

Place = tuple[Tensor, Update, Tensor]
"""A layer's weight, an update, and which of the update's rows the layer gets."""

_ADAPTER = "lora"
_SHOWN = 5  # keys that a message names


def lora_file(lora: LoRAFile) -> Path:
    """The local weight file of a LoRA; of a hub id it is downloaded into the hub's own cache.

    Raises:
        UserError: absent, damaged, several without `file`, or only pickles, which are never opened.
    """
    path = Path(lora.path)
    if path.is_dir():
        file = path / _chosen(lora, [entry.name for entry in path.iterdir()])
    elif path.is_file():
        file = path.parent / _chosen(LoRAFile(path=lora.path), [path.name])
    elif HUB_ID.fullmatch(lora.path) and path.suffix not in {".safetensors", *PICKLES}:
        file = _downloaded(lora)
    else:
        raise UserError(f"there is no LoRA {lora.path!r}: give a .safetensors file, its folder, or a hub id owner/name")
    if not file.is_file():
        raise UserError(f"{lora.path} has no file {lora.file!r}: correct teacher.loras")
    check_weights(file)
    return file


def _chosen(lora: LoRAFile, names: Sequence[str]) -> str:
    """`file` where it is set, or else the only safetensors file among these names."""
    if lora.file is not None:
        return lora.file
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return found[0]
    if USUAL in found:  # which Diffusers takes as well
        return USUAL
    if found:
        raise UserError(f"{lora.path} holds {', '.join(found[:8])}: say which one with `file` in teacher.loras")
    if any(Path(name).suffix in PICKLES for name in names):
        raise UserError(
            f"the LoRA {lora.path} is a pickle, which can run code when it is opened. "
            "Convert it to safetensors, or find one that is published so."
        )
    raise UserError(f"{lora.path} holds no .safetensors file: give the LoRA's weight file in teacher.loras")


def _downloaded(lora: LoRAFile) -> Path:
    try:
        return Path(hf_hub_download(lora.path, lora.file or _chosen(lora, list_repo_files(lora.path))))
    except HUB_FAILURES as error:
        raise UserError(
            f"the LoRA {lora.path!r} is neither here nor would the hub give it ({line(error)}). Check the spelling; "
            "without a network give its file, or `file` beside the id of an earlier download."
        ) from error


def fuse(pipe: StockPipeline, loras: Sequence[tuple[Path, float]], *, second: bool = False) -> None:
    """Adds LoRAs, each a file and its weight, to the networks of a pipeline, one after the other.

    No adapter stays behind. Each layer gets what the file says of it: W + weight * dW, or of a DoRA, which makes W' of
    W, W + weight * (W' - W).

    Args:
        second: whether they belong to the second of two denoisers.

    Raises:
        UserError: a part of a LoRA fits no layer, was made for another base, or is of a kind that is not known.
    """
    for file, weight in loras:
        for layer, update, rows in places_in(pipe, file, second=second):
            with torch.no_grad():
                layer.copy_(layer.float() + weight * update.added(layer, rows))


def places_in(pipe: StockPipeline, file: Path, *, second: bool = False) -> list[Place]:
    """The layers of a pipeline that a LoRA changes, none of which is changed; arguments and errors as of `fuse`."""
    updates, unknown = read_updates(file)
    if not reads_loras(pipe):
        return _named(pipe, file, updates, unknown)
    if unknown or not updates:
        reason = f"it has keys that are no part of a low-rank update, {first_few(sorted(unknown), _SHOWN)}"
        raise _misfit(pipe, file, reason)
    into = {"load_into_transformer_2": True} if second else {}
    return _found_by_diffusers(pipe, file, updates, into)


def _found_by_diffusers(pipe: LoRAPipeline, file: Path, updates: list[Update], into: Mapping[str, bool]) -> list[Place]:
    """The layers that Diffusers gives the updates to, where each is known again by its values."""
    try:
        with _no_load_report():
            pipe.load_lora_weights(normal_form(updates), adapter_name=_ADAPTER, **into)
    except Exception as error:  # Diffusers has no error class of its own for a LoRA that does not fit
        raise _misfit(pipe, file, line(error)) from error
    places: list[Place] = []
    given: dict[int, set[int]] = {id(update): set() for update in updates}
    try:
        for name, layer in _adapted(pipe).items():
            fresh_first = sorted(updates, key=lambda update: len(given[id(update)]) == len(update.up))
            places.append(_place(pipe, file, name, layer, fresh_first))
            given[id(places[-1][1])].update(places[-1][2].tolist())
    finally:
        pipe.unload_lora_weights()
    idle = [update for update in updates if update.length and len(given[id(update)]) < len(update.up)]
    if idle:
        keys = first_few(sorted(key for update in idle for key in update.keys[:2]), _SHOWN)
        reason = f"{len(idle)} of its {len(updates)} updates fit none of the layers ({keys})"
        raise _misfit(pipe, file, reason)
    return places


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Transformers would list all weights that are not the adapter's as missing and newly initialised."""
    report = logging.getLogger("transformers.integrations.peft")
    level = report.level
    report.setLevel(logging.ERROR)
    try:
        yield
    finally:
        report.setLevel(level)


def _adapted(pipe: StockPipeline) -> dict[str, Any]:
    """The layers that have the adapter, by part and name."""
    return {
        f"{part}.{name}": layer
        for part, net in pipe.components.items()
        if isinstance(net, nn.Module)
        for name, layer in net.named_modules()
        if isinstance(layer, BaseTunerLayer) and _ADAPTER in getattr(layer, "lora_A", {})
    }


def _place(pipe: StockPipeline, file: Path, name: str, layer: Any, updates: Sequence[Update]) -> Place:
    """A layer's weight, its update, and which of the update's rows it was given."""
    up, down = (getattr(layer, factor)[_ADAPTER].weight.detach() for factor in ("lora_B", "lora_A"))
    seen = sketch(up, down, layer.scaling[_ADAPTER])
    allowed = 1e-3 if down.dtype == torch.float32 else 3e-2  # the file's numbers are rounded to the layer's dtype
    for update in updates:
        rows = _rows(seen, update, allowed) if update.down[0].numel() == down[0].numel() else None
        if rows is not None:
            return layer.get_base_layer().weight, update, rows
    raise _misfit(pipe, file, f"Diffusers would give {name} an update that is none of the file's")


def _rows(seen: Tensor, update: Update, allowed: float) -> Tensor | None:
    """The run of the update's rows that has this sketch."""
    whole = update.sketch
    if len(seen) == len(whole) and abs(float(seen.norm()) - update.length) > allowed * update.length:
        return None
    largest = int(seen.abs().argmax())
    near = (whole - seen[largest]).abs() <= allowed * seen[largest].abs()
    for start in (near.nonzero()[:, 0] - largest).tolist():
        rows = torch.arange(start, start + len(seen))
        inside = start >= 0 and start + len(seen) <= len(whole)
        if inside and (whole[rows] - seen).norm() <= allowed * seen.norm():
            return rows
    return None


def _misfit(pipe: StockPipeline, file: Path, reason: str) -> UserError:
    return UserError(
        f"the LoRA {file} cannot be added to this {type(pipe).__name__}: {reason}. It was made for another base model, "
        "or is not a plain LoRA: remove it from teacher.loras, or add it to the weights with the tool that made it and "
        "give the folder of the result as teacher.path."
    )


def _named(pipe: StockPipeline, file: Path, updates: Sequence[Update], unknown: set[str]) -> list[Place]:
    """The places of updates in a pipeline without a LoRA loader, by peft's keys `[prefix.]layer.lora_A.weight`."""
    if unknown or not updates or any(DOWN_KEY not in update.keys[0] for update in updates):
        raise UserError(
            f"{type(pipe).__name__} has no LoRA loader in Diffusers, and {file} is not in peft's plain form "
            "(layer.lora_A.weight, layer.lora_B.weight) that can be added without one. Add it to the teacher's "
            "weights with the tool that made it, and give the folder of the result as teacher.path."
        )
    net, places = network_of(pipe), []
    for update in updates:
        layer = _without_prefix(update.keys[0].removesuffix(DOWN_KEY))
        rows = torch.arange(len(update.up))
        try:
            weight = net.get_submodule(layer).get_parameter("weight")
            update.delta(rows).reshape(weight.shape)
        except (AttributeError, RuntimeError) as error:
            raise _misfit(pipe, file, f"{layer}: {line(error)}") from error
        places.append((weight, update, rows))
    return places


def _without_prefix(key: str) -> str:
    """The key without the prefixes that peft and Diffusers put before a network's own names."""
    for prefix in ("base_model.model.", "unet.", "transformer."):
        key = key.removeprefix(prefix)
    return key
