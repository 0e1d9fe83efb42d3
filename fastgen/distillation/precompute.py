"""Samples of a run's images and conditioning of its prompts, made before the run by all of its processes."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..config.schema import Config
from ..data.decode import Size
from ..data.known import note, parts_of
from ..data.pixels import to_images
from ..data.workers import AHEAD, Found, Workers, decodes
from ..disk import check_writable
from ..engine.distributed import barrier, broadcast, disconnect, on_first
from ..engine.latents import KeptImages, drawn_images, noted, samples_of, sized
from ..engine.materials import contents_of_data
from ..errors import UserError
from ..models.pipelines.attention import avoid_cudnn
from ..models.pipelines.latents import Image
from ..models.pipelines.loading import answer_within
from ..models.pipelines.pipeline import EXAMPLES, Pipeline
from ..models.pipelines.repeats import said_once
from ..peers import together
from .checks import check_needs, check_stages
from .distil import accelerator_of
from .plan import recipe_of
from .prompts import drawn, encode
from .teacher import teacher_of

AT_ONCE = 32  # images that are decoded together


@dataclass(frozen=True)
class Precomputed:
    """What the cache of a run holds after `precompute`, and how much of it is new.

    Attributes:
        folder: of the cache.
        prompts: that the run draws.
        images: that it draws, mirrored ones counted apart.
        fresh: images whose samples were made now.
    """

    folder: Path
    prompts: int
    images: int
    fresh: int


def precompute(config: Config, *, recipes: Path) -> Precomputed:
    """Fills the cache of a run with all that its stages draw; what is there already is left as it is.

    Args:
        config: settings of the run.
        recipes: folder that `teacher.recipe` is relative to.

    Raises:
        UserError: the config, the teacher or the data cannot work, an image cannot be read, or there is no room.
    """
    folder = config.cache
    if folder is None:
        raise UserError("cache is null, but what is precomputed lies in a folder: give one with cache=FOLDER")
    if recipe_of(config, recipes) is not None:
        raise UserError(f"there is no teacher in {config.teacher.path} yet: fastgen train makes it by its recipe")
    answer_within(config.timeouts.hub)
    accelerator = accelerator_of(config)
    with together(config.timeouts.process), said_once():
        check_stages(config)
        on_first(lambda: check_writable(folder, "cache"))
        config.data.check()
        avoid_cudnn()
        pipeline = teacher_of(config, accelerator.device)
        check_needs(config, pipeline)
        encode(config, pipeline, accelerator)
        on_first(lambda: pipeline.encode(EXAMPLES, progress=False))  # asked for when roles are built
        images, fresh = _images(config, folder, pipeline, accelerator)
        made = Precomputed(folder, len(drawn(config)), images, fresh)
        disconnect()
    return made


def _images(config: Config, folder: Path, pipeline: Pipeline, accelerator: Accelerator) -> tuple[int, int]:
    """How many images the stages draw, and of how many samples were made."""
    stages = [stage for stage in config.stages if stage.objective.needs.images and not stage.objective.needs.pairs]
    if not stages or not parts_of(config.data):
        return 0, 0
    contents = broadcast(on_first(lambda: contents_of_data(config.data))) or {}
    kept, total, fresh = KeptImages(folder, config.data, contents), 0, 0
    for size, images in _together([drawn_images(config, stage) for stage in stages]).items():
        total += len(images)
        fresh += _fill(config, kept, sized(pipeline, size), images, accelerator)
    on_first(partial(_note, config, contents))
    return total, fresh


def _note(config: Config, contents: Mapping[str, str]) -> None:
    for part, file in zip(parts_of(config.data), noted(config), strict=True):
        note(part.records, file, contents)


def _together(drawn: Sequence[dict[Size | None, list[Image]]]) -> dict[Size | None, list[Image]]:
    sizes = dict.fromkeys(size for one in drawn for size in one)
    return {size: sorted({image for one in drawn for image in one.get(size, ())}) for size in sizes}


def _fill(config: Config, kept: KeptImages, view: Pipeline, images: Sequence[Image], accelerator: Accelerator) -> int:
    """Makes the samples of some images that are not there yet; how many that were, of all processes.

    Each process makes its share. Where nodes have a disk each, those of a node then share what the others did.
    """
    latents, shown = kept.of(view), accelerator.is_main_process
    fresh = len(latents.missing(images))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    shares = {(accelerator.process_index, accelerator.num_processes), (accelerator.local_process_index, here)}
    for place, of in sorted(shares, key=lambda share: -share[1]):
        missing = [images[int(number)] for number in latents.missing(images)]
        barrier()  # before anybody writes, all have seen what is missing
        own = missing[len(missing) * place // of : len(missing) * (place + 1) // of]
        with tqdm(total=len(own), desc="images", disable=not shown) as bar:
            latents.keep(_samples(config, view, own, bar), total=len(missing))
        barrier()
        latents.refresh()
    return fresh


def _samples(
    config: Config, view: Pipeline, images: Sequence[Image], bar: "tqdm[Any]"
) -> Iterator[tuple[Image, Tensor]]:
    chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
    device = next(view.network.parameters()).device
    for chunk, pixels in _decoded(config, chunks):
        mirrored = pixels.new_tensor([mirror for _, mirror in chunk]).bool()[:, None, None, None]
        pictures = to_images(pixels.flip(-1).where(mirrored, pixels))
        samples = samples_of(pictures, view, device).float().cpu()
        yield from zip(chunk, samples, strict=True)
        bar.update(len(chunk))


def _decoded(config: Config, chunks: Sequence[Sequence[Image]]) -> Iterator[tuple[Sequence[Image], Tensor]]:
    """Chunks of images with their pixels, of which the next ones are decoded meanwhile."""
    source, ahead = config.data, deque[tuple[Sequence[Image], Future[Found]]]()
    workers = Workers(source, config.workers) if config.workers and decodes(source) else None
    depth = 1 if workers is None else AHEAD * workers.count
    with ThreadPoolExecutor(1, "fastgen-data") as thread:
        for chunk in chunks:
            numbers = [number for number, _ in chunk]
            asked = thread.submit(source.pixels, numbers) if workers is None else workers.submit(numbers)
            ahead.append((chunk, asked))
            if len(ahead) > depth:
                yield _next(source, ahead)
        while ahead:
            yield _next(source, ahead)


def _next(source: Any, ahead: deque[tuple[Sequence[Image], Future[Found]]]) -> tuple[Sequence[Image], Tensor]:
    """The first chunk of those on their way, once it is there."""
    chunk, images = ahead.popleft()
    pixels, numbers = Workers.result(images)
    for (asked, _), number in zip(chunk, numbers, strict=True):
        if asked != number:
            raise UserError(
                f"image {source.named(asked)} cannot be read, and what is precomputed has no other in its place: take "
                "it out of the data, or write it anew"
            )
    return chunk, pixels
