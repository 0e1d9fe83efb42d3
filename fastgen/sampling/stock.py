"""Draw images or videos from a stock pipeline, one seed per image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..models.pipelines.arguments import check_known, conditions, parameters
from ..models.pipelines.loading import line
from ..models.pipelines.stock_pipeline import StockPipeline


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of one batch.

    Attributes:
        images: float32 [B, C, H, W] in [0, 1] on the CPU; of videos all frames, [B, F, C, H, W].
        flags: for each sample the names of the pipeline's own outputs that say yes of it: `nsfw_content_detected` of
            a safety checker, which has blackened such a picture.
    """

    images: Tensor
    flags: tuple[tuple[str, ...], ...]

    @property
    def pictures(self) -> Tensor:
        """One picture [B, C, H, W] of each sample: of a video its middle frame."""
        return self.images if self.images.ndim == 4 else self.images[:, self.images.shape[1] // 2]


def generate(
    pipe: StockPipeline,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    negative_prompts: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[Drawn]:
    """Draw one image or video per seed with the pipeline's own call; arguments are checked before the first batch.

    Image i comes from its own CPU generator, seeded with seeds[i], so its noise is the same on every device
    and in every batch size. Pipelines that do not hand the generator to `scheduler.step` (Flux, SD3, DiT ...)
    take the noise of a stochastic scheduler from the global generators: those are seeded with the first seed
    of each batch for the time of the call, and there an image does depend on its batch.

    Args:
        labels, prompts, negative_prompts: one per seed.
        arguments: arguments of the call under its own names, such as size and guidance.
        progress: show a bar when stderr is a terminal.

    Returns:
        Batches in the order of the seeds.

    Raises:
        UserError: an argument that this pipeline cannot take or lacks, a label without an embedding, not
            enough memory, pixels that are not finite, whatever the pipeline's call refuses.
    """
    common: dict[str, Any] = dict(arguments or {})
    if steps is not None:
        common["num_inference_steps"] = steps
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


def _draw(pipe: StockPipeline, batches: Sequence[_Batch], *, progress: bool) -> Iterator[Drawn]:
    hidden = None if progress else True  # None: tqdm hides a bar unless stderr is a terminal
    pipe.set_progress_bar_config(disable=hidden, leave=False, position=1, desc="step")
    with tqdm(total=sum(len(batch.seeds) for batch in batches), unit="image", disable=hidden) as bar:
        for batch in batches:
            output = _call(pipe, batch)
            images = _finite_images(pipe, batch, output)
            bar.update(len(images))
            yield Drawn(images, _flags(output, len(images)))


def _call(pipe: StockPipeline, batch: _Batch) -> BaseOutput:
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
    except UserError:  # a class that no student of several is for
        raise
    except Exception as error:  # a size that its latents cannot have, a prompt that its checker refuses ...
        given = {name: value for name, value in batch.arguments.items() if not isinstance(value, list)}
        raise UserError(
            f"{type(pipe).__name__} refused its call ({type(error).__name__}: {line(error)}), which was told {given}. "
            "Change what was asked for; --debug shows where it was raised."
        ) from error


def _finite_images(pipe: StockPipeline, batch: _Batch, output: BaseOutput) -> Tensor:
    name = type(pipe).__name__
    made = next((field for field in ("images", "frames") if field in output), None)
    if made is None:
        raise UserError(
            f"{name} makes {', '.join(output)}, but fastgen samples images and videos. Give a pipeline of these."
        )
    images: Tensor = torch.as_tensor(output[made]).float().cpu()
    if not images.isfinite().all():
        raise UserError(
            f"{name} in {pipe.dtype} gave pixels that are not finite for the seeds {list(batch.seeds)}. Some "
            "decoders overflow in float16: use --dtype bfloat16 or float32; otherwise the weights are bad."
        )
    return images


def _flags(output: BaseOutput, count: int) -> tuple[tuple[str, ...], ...]:
    """The names of the outputs that answer yes or no for each sample, where they answer yes."""
    answers = {name: _answers(value) for name, value in output.items()}
    asked = {name: values for name, values in answers.items() if values is not None and len(values) == count}
    return tuple(tuple(name for name, values in asked.items() if values[i]) for i in range(count))


def _answers(value: Any) -> list[bool] | None:
    """A list, array or tensor of truth values as a list; None for anything else."""
    values = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, bool | np.bool_) for one in values):
        return None
    return list(map(bool, values))


def _check_lengths(each: dict[str, list[Any]], count: int) -> None:
    for name, values in each.items():
        if len(values) != count:
            raise UserError(f"{count} seeds, but {len(values)} values of {name}. Give one per image.")
