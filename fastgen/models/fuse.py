"""A user's LoRAs become part of the base: loaded, weighted, added to the weights, and gone.

LoRA (2106.09685): W <- W + weight * alpha / r * B A.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, list_repo_files
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import UserError
from .loading import HUB_FAILURES, HUB_ID, check_weights, line
from .source import LoRAFile
from .watch import network_of

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
USUAL = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
_DOWN = re.compile(r"lora(_A|[._]down)\.")


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


def fuse(pipe: DiffusionPipeline, loras: Sequence[tuple[Path, float]], *, second: bool = False) -> None:
    """Adds LoRAs, each a file and its weight, to the networks of a pipeline; no adapter stays behind.

    Args:
        second: they belong to the second of two denoisers.

    Raises:
        UserError: a LoRA fits no layer, was made for another base, or is of a kind that the pipeline cannot take.
    """
    if loras and hasattr(pipe, "load_lora_weights"):
        _fuse_by_pipeline(pipe, loras, {"load_into_transformer_2": True} if second else {})
        return
    for file, weight in loras:
        _add(pipe, network_of(pipe), file, weight)


def _fuse_by_pipeline(pipe: DiffusionPipeline, loras: Sequence[tuple[Path, float]], into: Mapping[str, bool]) -> None:
    names = [f"lora{index}" for index in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        try:
            with _no_load_report():
                told = {"weight_name": file.name, "adapter_name": name, "use_safetensors": True, **into}
                pipe.load_lora_weights(file.parent, **told)
        except Exception as error:  # Diffusers has no error class of its own for a LoRA that does not fit
            raise _misfit(pipe, file, line(error)) from error
        fitting, told = _layers_with(pipe, name), _layers_in(file)
        if not fitting:
            raise _misfit(pipe, file, "it fits none of the layers")
        if fitting < told:
            warnings.warn(f"the LoRA {file} fits {fitting} of the {told} layers it was made for", stacklevel=4)
    pipe.set_adapters(names, [weight for _, weight in loras])
    parts = [part for part in pipe._lora_loadable_modules if getattr(pipe, part, None) is not None]
    pipe.fuse_lora(components=parts, adapter_names=names)
    pipe.unload_lora_weights()


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


def _layers_with(pipe: DiffusionPipeline, adapter: str) -> int:
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    layers = [layer for net in networks for layer in net.modules() if isinstance(layer, BaseTunerLayer)]
    return sum(any(adapter in getattr(layer, names) for names in layer.adapter_layer_names) for layer in layers)


def _layers_in(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return sum(bool(_DOWN.search(key)) for key in opened.keys())  # noqa: SIM118


def _misfit(pipe: DiffusionPipeline, file: Path, reason: str) -> UserError:
    return UserError(
        f"the LoRA {file} cannot be added to this {type(pipe).__name__}: {reason}. "
        "It was made for another base model, or is no LoRA: remove it from teacher.loras, or give its own base."
    )


@torch.no_grad()
def _add(pipe: DiffusionPipeline, net: nn.Module, file: Path, weight: float) -> None:
    """The same for a pipeline without a LoRA loader, from peft's keys `[prefix.]layer.lora_A.weight`."""
    with safe_open(file, framework="pt") as opened:
        tensors = {_plain(key): opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        settings = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
    layers = sorted({key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")})
    known = {f"{layer}.{end}" for layer in layers for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    if not layers or not tensors.keys() <= known:
        raise UserError(
            f"{type(pipe).__name__} has no LoRA loader in Diffusers, and {file} is not in peft's plain form "
            "(layer.lora_A.weight, layer.lora_B.weight) that can be added without one. Add it to the teacher's "
            "weights with the tool that made it, and give the folder of the result as teacher.path."
        )
    for layer in layers:
        try:
            target = net.get_submodule(layer).get_parameter("weight")
            down, up = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
            delta = (up.flatten(1).float() @ down.flatten(1).float()).reshape(target.shape)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise _misfit(pipe, file, f"{layer}: {line(error)}") from error
        scale = weight * _alpha(layer, tensors, settings, rank=len(down)) / len(down)
        target.add_((scale * delta).to(target))


def _plain(key: str) -> str:
    """The key without the prefixes that peft and Diffusers put before a network's own names."""
    for prefix in ("base_model.model.", "unet.", "transformer."):
        key = key.removeprefix(prefix)
    return key


def _alpha(layer: str, tensors: Mapping[str, Tensor], settings: Mapping[str, object], *, rank: int) -> float:
    """alpha of a layer: of its own, of the file's metadata, or else the rank (no scaling)."""
    if f"{layer}.alpha" in tensors:
        return float(tensors[f"{layer}.alpha"])
    plain = {_plain(key): value for key, value in settings.items()}
    own = plain.get("alpha_pattern")
    return float((own.get(layer) if isinstance(own, Mapping) else None) or plain.get("lora_alpha") or rank)
