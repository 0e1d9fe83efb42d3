"""Load a stock Diffusers pipeline: safetensors only, no code from the folder, clear words when it cannot be."""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from safetensors import SafetensorError, safe_open
from torch import nn

from ...errors import UserError, did_you_mean, warn
from ...limits import read_json
from .finite import check_finite
from .folders import INDEX, check_is_pipeline
from .foreign import check_pipeline, unasked
from .notes import Notes
from .stock_pipeline import StockPipeline

HUB_FAILURES = (HTTPError, OSError, ValueError)  # no network, no login, no such thing there
HUB_S = 30.0
HUB_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?")
"""owner/name; what begins with ./ or ../ is a path."""
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")


def answer_within(seconds: float) -> None:
    """Lets the hub's client, which waits for ever otherwise, wait so long for an answer and for each part of one."""
    get_session().timeout = seconds


def locate(path: str | Path, *, variant: str | None = None, revision: str | None = None) -> Path:
    """The local folder or file of a pipeline; a hub id is downloaded (safetensors only) into the hub's own cache.

    Args:
        variant: variant of the weight files on the hub.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: neither a folder here nor a pipeline on the hub.
    """
    folder = Path(path)
    if folder.exists():
        return folder
    if not HUB_ID.fullmatch(str(path)):
        raise missing(path)
    wanted: dict[str, Any] = {"revision": revision} if revision else {}
    if get_session().timeout.read is None:
        answer_within(HUB_S)
    try:
        folder = Path(
            DiffusionPipeline.download(
                str(path),
                use_safetensors=True,
                trust_remote_code=False,
                **wanted,
                **({"variant": variant} if variant else {}),
            )
        )
        with suppress(EntryNotFoundError):
            hf_hub_download(str(path), Notes.FILE, **wanted)
    except HUB_FAILURES as error:
        told = _meant(folder)
        raise UserError(
            f"{str(path)!r} is neither a folder here{told and f' ({told})'} nor a pipeline that the hub would give "
            f"({line(error)}). Check the spelling; a hub id needs a network or an earlier download, and "
            "teacher.variant (such as fp16) where it has no other weights."
        ) from error
    return folder


def missing(path: str | Path) -> UserError:
    """What is told where there is no such folder, and its path is no hub id."""
    folder = Path(path)
    hint = "a ~ is not your home folder here" if folder.parts[:1] == ("~",) else _meant(folder)
    return UserError(
        f"there is no pipeline folder {str(path)!r}{hint and f', {hint}'}: give the folder that holds "
        "model_index.json, or a hub id such as owner/name"
    )


def _meant(folder: Path) -> str:
    """What else is beside a folder that is not there, if its name is like it."""
    beside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    return did_you_mean(folder.name, beside)


def load(
    path: str | Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    revision: str | None = None,
    parts: Mapping[str, Any] | None = None,
) -> StockPipeline:
    """`DiffusionPipeline.from_pretrained` on a folder or hub id: safetensors only, no code from the folder.

    Args:
        dtype: dtype of the weights of all parts, whatever they are saved in.
        variant: variant of the weight files; None takes the plain ones, or the only ones there are.
        revision: branch, tag or commit on the hub.
        parts: parts by name that are not read; they stay where and what they are.

    Raises:
        UserError: no folder, not a pipeline, a damaged weight file (named), no such device.
    """
    folder = locate(path, variant=variant, revision=revision)
    check_is_pipeline(folder)
    wanted, variant = variant, variant_of(folder, variant)
    if variant != wanted:
        warn(f"{folder} has only {variant} weights for some parts: loading these")
    check_weights(*(file for files in weight_files(folder, variant).values() for file in files))
    check_pipeline(folder)
    try:
        with unasked():
            pipe = DiffusionPipeline.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                **({"variant": variant} if variant else {}),
                **straight_to(device),
                **(parts or {}),
            )
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"{folder} cannot be loaded as a Diffusers pipeline ({line(error)}). "
            "It needs one sub-folder with config and safetensors weights for each part that model_index.json "
            "lists, and no custom code."
        ) from error
    check_whole(pipe, folder, but=parts or ())
    return moved(pipe, folder, device, but=parts or ())


def straight_to(device: str | torch.device) -> dict[str, Any]:
    """What lets Diffusers load each tensor straight to a GPU, with no copy of the whole pipeline in main memory."""
    return {"device_map": "cuda"} if torch.device(device).type == "cuda" and torch.cuda.is_available() else {}


def moved(pipe: StockPipeline, origin: Path, device: str | torch.device, *, but: Collection[str] = ()) -> StockPipeline:
    """The pipeline, without the parts that are named, on a device, or a UserError that says why it cannot be there."""
    try:
        if not but:
            return pipe.to(device)
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name not in but:
                part.to(device)
        return pipe
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{type(pipe).__name__} from {origin} cannot be moved to {device} ({line(error)}). "
            "Choose another device, or a smaller dtype where memory is short."
        ) from error


def weight_files(folder: Path, variant: str | None) -> dict[str, list[Path]]:
    """The files that Diffusers would read of each part: the variant's, or the plain ones where it has none."""
    return {part: files.get(variant, files.get(None, [])) for part, files in _weights(folder).items()}


def dtypes_in(*files: Path) -> set[torch.dtype | None]:
    """The dtypes of the fractions in safetensors files, by their headers; None is one that no pipeline is loaded in."""
    found: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as content:
            found |= {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118
    return {_FLOATS.get(kind) for kind in found if kind[0] in "FB" and kind != "BOOL"}


def _weights(folder: Path) -> dict[str, dict[str | None, list[Path]]]:
    """The weight files of the parts that model_index.json lists, by part and variant; None is the plain one."""
    listed = read_json(folder / INDEX)
    if not isinstance(listed, dict):
        raise UserError(f"{folder / 'model_index.json'} holds no mapping: copy or download it again")
    parts = sorted({file.parent for file in folder.glob("*/*.safetensors")})
    return {part.name: files for part in parts if part.name in listed and (files := weights_by_variant(part))}


def weights_by_variant(folder: Path) -> dict[str | None, list[Path]]:
    """The weight files of one part's folder by their variant; None is the plain one."""
    variants: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if match := _WEIGHTS.fullmatch(file.name):
            variants.setdefault(match["variant"], []).append(file)
    return variants


def check_weights(*files: Path) -> None:
    """Raises a UserError that names the first of these safetensors files whose header cannot be read."""
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is damaged ({line(error)}; {file.stat().st_size} bytes): truncated, or a "
                "placeholder of git-lfs. Copy or download it again."
            ) from error


def check_whole(pipe: StockPipeline, origin: Path, *, but: Collection[str] = ()) -> None:
    """Refuses a pipeline of which weights are missing or not finite.

    Diffusers only warns of weights that a file lacks, and leaves them on the meta device.

    Args:
        origin: where it was read from.
        but: parts that were not read.

    Raises:
        UserError: naming part, tensor and remedy.
    """
    for part, module in pipe.components.items():
        tensors = dict(module.named_parameters()) if isinstance(module, nn.Module) and part not in but else {}
        missing = [name for name, tensor in tensors.items() if tensor.is_meta]
        place = origin / part if origin.is_dir() else f"{part} in {origin}"
        if missing:
            raise UserError(
                f"{place} lacks {len(missing)} weights of {type(module).__name__}, such as {missing[0]}. "
                "Save the whole pipeline again with save_pretrained, or correct the part's config.json."
            )
        check_finite(tensors.items(), place)


def variant_of(folder: Path, wanted: str | None = None) -> str | None:
    """The variant to ask for: the one that is wanted, or the one without which some part would have no weights.

    Raises:
        UserError: none is wanted, some part has no plain weights, and no one variant serves all parts.
    """
    if wanted is not None:
        return wanted
    variants = [set(files) for files in _weights(folder).values()]
    forced = [found for found in variants if None not in found]
    if not forced:
        return None
    common = sorted(str(variant) for variant in set.intersection(*forced))
    if len(common) != 1:
        offered = sorted({str(variant) for found in forced for variant in found})
        raise UserError(
            f"{folder} has no plain weights and its variants are {', '.join(offered)}: choose one that all of its "
            "parts have with teacher.variant, or save the pipeline again with save_pretrained"
        )
    return common[0]


def line(error: Exception) -> str:
    """The first 300 characters of an error's message on one line."""
    return shorten(str(error), 300, placeholder=" ...") or type(error).__name__
