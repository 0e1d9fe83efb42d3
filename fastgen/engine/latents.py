"""Images whose samples were made before a run: which ones it draws, where they lie, and a run without the images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import Config, StageConfig
from ..config.yaml_file import digest, fingerprint
from ..data import Source
from ..data.decode import Size
from ..data.known import Known, parts_of
from ..errors import UserError, say
from ..models.conditioning import sent
from ..models.pipelines.latents import Image, Latents
from ..models.pipelines.pipeline import Pipeline
from .loading import loader_of, positions_of

SETS = "sets"
_DECISIVE = ("channels", "background", "image", "name", "split", "revision")
"""Settings of a source that decide the pixels of its images."""


class KeptImages:
    """The samples of a run's images in its cache.

    Args:
        folder: of the cache.
        data: source of the images.
        contents: what it holds, see `materials`.
    """

    def __init__(self, folder: Path, data: Source, contents: Mapping[str, str]) -> None:
        self._folder, self._views = folder, dict[tuple[int, ...], Latents]()
        settings = [{name: getattr(part, name, None) for name in _DECISIVE} | _cropped(part) for part in parts_of(data)]
        self._data: dict[str, Any] = {"settings": settings, "contents": dict(contents)}

    def of(self, view: Pipeline) -> Latents:
        """The kept samples of images that have the shape of a pipeline's samples."""
        if view.shape not in self._views:
            self._views[view.shape] = Latents(self._folder, view.codec, self._data)
        return self._views[view.shape]

    def empty(self, config: Config, pipeline: Pipeline) -> bool:
        """Whether there is none of this teacher and these data."""
        sizes = (None,) if config.data.bucket is None else config.data.shapes
        return all(self.of(sized(pipeline, size)).empty for size in sizes)

    def missing(self, config: Config, stage: StageConfig, pipeline: Pipeline) -> tuple[int, int]:
        """How many of the images that a stage draws are not there, and how many it draws."""
        drawn = drawn_images(config, stage)
        missing = sum(len(self.of(sized(pipeline, size)).missing(images)) for size, images in drawn.items())
        return missing, sum(map(len, drawn.values()))


def sized(pipeline: Pipeline, size: Size | None) -> Pipeline:
    """The pipeline at the size of a bucket, or, for None, at its own."""
    return pipeline if size is None else pipeline.sized(*size)


def samples_of(images: Tensor, view: Pipeline, device: torch.device) -> Tensor:
    """Samples [B, ...] of images [B, C, H, W] in [-1, 1].

    Raises:
        UserError: the images do not fit the teacher.
    """
    vae = getattr(view.pipe, "vae", None)
    fits = vae is None or images.shape[1] == vae.config.get("in_channels", images.shape[1])
    found = view.codec.encode(sent(images, device)) if fits else images
    if not fits or found.shape[1:] != view.shape:
        raise UserError(
            f"the data's images of shape {tuple(images.shape[1:])} do not fit the teacher, whose samples have shape "
            f"{tuple(view.shape)}: choose data.size and data.channels, or another teacher"
        )
    return found


def drawn_images(config: Config, stage: StageConfig) -> dict[Size | None, list[Image]]:
    """The images that a stage reads, each once, by the size of their bucket; None where all have the student's."""
    images = loader_of(config, "data", batch=stage.train.batch).pictured(positions_of(stage))
    bucket = config.data.bucket
    if bucket is None:
        return {None: images}
    found: dict[Size | None, list[Image]] = {}
    for image in images:
        found.setdefault(config.data.shapes[int(bucket[image[0]])], []).append(image)
    return found


def noted(config: Config) -> list[Path]:
    """Where what is known of the images of each source is noted, by the settings of the data."""
    assert config.cache is not None
    folder = config.cache / SETS / digest(fingerprint(config)["data"])
    return [folder / f"{place}.arrow" for place in range(len(parts_of(config.data)))]


def recall(config: Config) -> None:
    """Where the images of a run are gone and were precomputed, puts what is known of them in their place.

    Raises:
        UserError: what was noted is damaged.
    """
    parts = parts_of(config.data)
    if config.cache is None or not parts or all(map(_at_hand, parts)):
        return
    files = noted(config)
    if all(file.is_file() for file in files):
        for part, file in zip(parts, files, strict=True):
            part.recall(Known(file))
        say(f"the images of the data are not at hand: what was precomputed of them in {config.cache} takes their place")


def kept_images(
    config: Config,
    stage: StageConfig,
    pipeline: Pipeline,
    contents: Mapping[str, str],
    *,
    say: Callable[[str], None],
) -> KeptImages | None:
    """The samples of a stage's images, where all of them are kept.

    Args:
        config, stage: settings of the run and of the stage.
        pipeline: the teacher, whose codec made them.
        contents: what the data hold, see `materials`.
        say: is told which images are read or encoded.

    Raises:
        UserError: some are not kept, and the images are not at hand.
    """
    if config.cache is None or not contents or not parts_of(config.data):
        return None
    kept, away = KeptImages(config.cache, config.data, contents), any(map(is_known, parts_of(config.data)))
    if kept.empty(config, pipeline) and not away:
        return None
    missing, drawn = kept.missing(config, stage, pipeline)
    called = f"stage {stage.name!r}"
    if not missing:
        say(f"{called} reads the samples of {drawn:,} images from {config.cache}, and no image")
        return kept
    if away:
        raise UserError(
            f"{called} draws {drawn:,} images that are not at hand, and {missing:,} of them were not precomputed for "
            f"this teacher and this run in {config.cache}: bring the data back, or run fastgen precompute with these "
            "settings where they are"
        )
    if missing < drawn:
        say(f"{called}: {missing:,} of {drawn:,} images were not precomputed, so all are encoded while it trains")
    return None


def _cropped(part: Any) -> dict[str, Any]:
    """The size that images are brought to where no bucket tells it: several may give samples of one shape."""
    return {"size": part.shapes} if part.buckets is None else {}


def is_known(part: Any) -> bool:
    """Whether what is known of the images stands in their place."""
    return isinstance(part.records, Known)


def _at_hand(part: Any) -> bool:
    try:
        return is_known(part) or len(part.records) > 0
    except UserError:
        return False
