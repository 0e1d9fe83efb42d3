"""Load a stock Diffusers pipeline: safetensors only, no code from the folder, clear words when it cannot be."""

import re
from contextlib import suppress
from pathlib import Path
from textwrap import shorten

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import UserError
from ..notes import Notes

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(path: str | Path) -> Path:
    """The local folder of a pipeline; a hub id is downloaded (safetensors only) into the hub's own cache.

    Raises:
        UserError: neither a folder here nor a pipeline on the hub.
    """
    folder = Path(path)
    if folder.exists():
        return folder
    if not _HUB_ID.fullmatch(str(path)):
        raise UserError(
            f"there is no pipeline folder {str(path)!r}. Give the folder that holds model_index.json, "
            "or a hub id such as owner/name."
        )
    try:
        folder = Path(DiffusionPipeline.download(str(path), use_safetensors=True))
        with suppress(EntryNotFoundError):
            hf_hub_download(str(path), Notes.FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is neither a folder here nor a pipeline that the hub would give ({_line(error)}). "
            "Check the spelling; a hub id needs a network or an earlier download."
        ) from error
    return folder


def load(path: str | Path, *, device: str | torch.device, dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained` on a folder or hub id: safetensors only, no code from the folder.

    Args:
        dtype: of the weights; None is float32, the default of Diffusers.

    Raises:
        UserError: no folder, not a pipeline, a damaged weight file (named), no such device.
    """
    folder = locate(path)
    _check_is_pipeline(folder)
    _check_weights(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"{folder} cannot be loaded as a Diffusers pipeline ({_line(error)}). "
            "It needs one sub-folder with config and safetensors weights for each part that model_index.json "
            "lists, and no custom code."
        ) from error
    _check_complete(pipe, folder)
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{type(pipe).__name__} from {folder} cannot be moved to {device} ({_line(error)}). "
            "Choose another device, or a smaller dtype where memory is short."
        ) from error
    return pipe


def _check_is_pipeline(folder: Path) -> None:
    if folder.is_file():
        raise UserError(
            f"{folder} is a single file, not a pipeline folder. Convert it once with the pipeline class's "
            "from_single_file(...) and save_pretrained(folder), then give that folder."
        )
    if not (folder / "model_index.json").is_file():
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise UserError(
            f"{folder} is not a pipeline: it has no model_index.json (found: {', '.join(found) or 'nothing'}). Give "
            "the folder that save_pretrained wrote for the whole pipeline, not for one part of it."
        )


def _check_weights(folder: Path) -> None:
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is damaged ({_line(error)}; {file.stat().st_size} bytes): truncated, or a "
                "placeholder of git-lfs. Copy or download it again."
            ) from error


def _check_complete(pipe: DiffusionPipeline, folder: Path) -> None:
    """Diffusers only warns of weights that a file lacks, and leaves them on the meta device."""
    for part, module in pipe.components.items():
        tensors = module.named_parameters() if isinstance(module, nn.Module) else ()
        missing = [name for name, tensor in tensors if tensor.is_meta]
        if missing:
            raise UserError(
                f"{folder / part} lacks {len(missing)} weights of {type(module).__name__}, such as {missing[0]}. "
                "Save the whole pipeline again with save_pretrained, or correct the part's config.json."
            )


def _line(error: Exception) -> str:
    return shorten(str(error), 300, placeholder=" ...") or type(error).__name__
