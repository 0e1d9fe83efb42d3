"""Load a stock Diffusers pipeline and draw images from it, one seed per image."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UserError
from ..export.notes import Notes
from .arguments import (
    check_known,
    check_labels,
    conditioning_kind,
    conditions,
    default_steps,
    draw_labels,
    guidance_argument,
    parameters,
    real_classes,
)

__all__ = [
    "check_labels",
    "conditioning_kind",
    "default_steps",
    "draw_labels",
    "generate",
    "load",
    "locate",
    "real_classes",
]

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


def generate(
    pipe: DiffusionPipeline,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    guidance: float | None = None,
    negative_prompts: Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[Tensor]:
    """Draw one image per seed with the pipeline's own call; arguments are checked before the first batch.

    Image i comes from its own CPU generator, seeded with seeds[i], so its noise is the same on every device
    and in every batch size. Pipelines that do not hand the generator to `scheduler.step` (Flux, SD3, DiT ...)
    take the noise of a stochastic scheduler from the global generators: those are seeded with the first seed
    of each batch for the time of the call, and there an image does depend on its batch.

    Args:
        labels, prompts, negative_prompts: one per seed.
        guidance: w of uncond + w (cond - uncond), 1 = none; None leaves the pipeline's default.
        height, width: in pixels.
        progress: show a bar when stderr is a terminal.

    Returns:
        Batches of float32 images [b, C, H, W] in [0, 1] on the CPU, in the order of the seeds.

    Raises:
        UserError: an argument that this pipeline cannot take or lacks, a label without an embedding, not
            enough memory, pixels that are not finite.
    """
    chosen = {"num_inference_steps": steps, "height": height, "width": width}
    common: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if guidance is not None:
        common |= guidance_argument(pipe, guidance)
    each = conditions(pipe, labels=labels, prompts=prompts)
    if negative_prompts is not None:
        each["negative_prompt"] = list(negative_prompts)
    elif common.get("true_cfg_scale", 1.0) > 1:
        each["negative_prompt"] = [""] * len(seeds)  # without one these pipelines do not guide
    check_known(pipe, {**common, **each})
    _check_lengths(each, len(seeds))
    batches = [
        _Batch(
            seeds=seeds[start : start + batch_size],
            arguments=common | {name: values[start : start + batch_size] for name, values in each.items()},
        )
        for start in range(0, len(seeds), batch_size)
    ]
    return _draw(pipe, batches, progress=progress)


@dataclass(frozen=True)
class _Batch:
    seeds: Sequence[int]
    arguments: dict[str, Any]


def _draw(pipe: DiffusionPipeline, batches: Sequence[_Batch], *, progress: bool) -> Iterator[Tensor]:
    hidden = None if progress else True  # None: tqdm hides a bar unless stderr is a terminal
    pipe.set_progress_bar_config(disable=hidden, leave=False, position=1, desc="step")
    with tqdm(total=sum(len(batch.seeds) for batch in batches), unit="image", disable=hidden) as bar:
        for batch in batches:
            images = _finite_images(pipe, batch, _call(pipe, batch))
            bar.update(len(images))
            yield images


def _call(pipe: DiffusionPipeline, batch: _Batch) -> BaseOutput:
    """The pipeline's own call; the global generators are left as they were."""
    size = {"batch_size": len(batch.seeds)} if "batch_size" in parameters(pipe) else {}
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    accelerators = [pipe.device] if pipe.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(accelerators):
            torch.manual_seed(batch.seeds[0])
            return pipe(**batch.arguments, **size, generator=generators, output_type="pt")
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{pipe.device} has too little memory for {len(batch.seeds)} images of {type(pipe).__name__} at "
            "once. Choose a smaller batch size (--batch-size) or dtype (--dtype bfloat16)."
        ) from error


def _finite_images(pipe: DiffusionPipeline, batch: _Batch, output: BaseOutput) -> Tensor:
    name = type(pipe).__name__
    if "images" not in output:
        raise UserError(f"{name} makes {', '.join(output)}, but fastgen samples images. Give an image pipeline.")
    images: Tensor = output["images"].float().cpu()
    if not images.isfinite().all():
        raise UserError(
            f"{name} in {pipe.dtype} gave pixels that are not finite for the seeds {list(batch.seeds)}. Some "
            "decoders overflow in float16: use --dtype bfloat16 or float32; otherwise the weights are bad."
        )
    return images


def _check_lengths(each: dict[str, list[Any]], count: int) -> None:
    for name, values in each.items():
        if len(values) != count:
            raise UserError(f"{count} seeds, but {len(values)} values of {name}. Give one per image.")


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
