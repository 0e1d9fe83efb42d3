"""What a stage is fed from: the stream of its data, samples of images that were made before, pairs of the teacher."""

from collections.abc import Callable

from accelerate import Accelerator

from ..config.schema import Config, StageConfig
from ..config.yaml_file import digest, fingerprint
from ..models.pipelines.pipeline import Pipeline
from .dtypes import autocast_of
from .feed import Feed, PairSet
from .latents import kept_images
from .loading import loader_of
from .materials import Materials
from .pairs import teacher_pairs


def build_feed(
    config: Config,
    stage: StageConfig,
    pipeline: Pipeline,
    *,
    accelerator: Accelerator,
    made_of: Materials,
    say: Callable[[str], None],
) -> Feed:
    """The batches of a stage; samples of the teacher are made first where its objective needs them.

    Args:
        config, stage: settings of the run and of the stage.
        pipeline: the teacher.
        accelerator: device and processes.
        made_of: contents of teacher and data, see `materials`.
        say: is told of images whose samples were made before.

    Raises:
        UserError: images are not at hand, and not all of their samples are.
        CheckpointError: the pairs on disk are not what was written.
    """
    needs, device = stage.objective.needs, accelerator.device
    kept = None
    if needs.images and not needs.pairs:
        kept = kept_images(config, stage, pipeline, made_of.get("data", {}), say=say)
    read = needs.images and kept is None
    loader = loader_of(config, "data", batch=stage.train.batch, images=read, device=device)
    pairs = _pairs(config, stage, pipeline, made_of, accelerator) if needs.pairs else None
    framed = needs.images and config.micro_conditioning == "image"
    return Feed(pipeline, loader, device, needs, pairs, kept, pipeline.framing if framed else None)


def _pairs(
    config: Config,
    stage: StageConfig,
    pipeline: Pipeline,
    made_of: Materials,
    accelerator: Accelerator,
) -> PairSet:
    settings, precision = fingerprint(config), stage.train.precision
    told = [settings[name] for name in ("pairs", "seed", "teacher", "data")]
    autocast = autocast_of(pipeline.network, precision, pipeline.told_in)
    return teacher_pairs(
        config.out / "pairs",
        pipeline,
        pipeline.speaking(pipeline.network, autocast=autocast),
        config.pairs,
        loader=loader_of(config, "pairs", images=stage.objective.needs.images),
        key=digest([*told, precision, made_of.get("teacher"), made_of.get("data")]),
        accelerator=accelerator,
    )
