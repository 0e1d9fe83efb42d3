"""Draw images from a stock pipeline, one seed per image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..models.arguments import check_known, conditions, guidance_argument, parameters


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
            torch.random.default_generator.manual_seed(batch.seeds[0])
            if accelerators:
                torch.cuda.manual_seed_all(batch.seeds[0])
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
