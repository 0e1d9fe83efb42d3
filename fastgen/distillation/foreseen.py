"""What a run would be refused for once its teacher is loaded, looked for by the teacher's configs alone."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..config.schema import Config, StageConfig
from ..data.known import parts_of
from ..engine.feed import Feed
from ..engine.latents import is_known
from ..engine.loading import loader_of
from ..errors import UncountedError, UserError
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.weightless import answering
from ..planning.card import NOWHERE
from .checks import check_needs
from .costs import teacher_without_weights
from .grids import check_grids
from .plan import recipe_of
from .release import check_release
from .student import Student


def foreseen(config: Config, *, recipes: Path) -> Iterator[str]:
    """What the run will be refused for first once its teacher is loaded, in its words, and of its recipe the same.

    Nothing is said where the teacher's configs are not here, and nothing by a check that asks for values of weights.
    """
    recipe = recipe_of(config, recipes)
    if recipe:
        yield from foreseen(recipe.config, recipes=recipe.file.parent)
    try:
        pipeline = teacher_without_weights(config, recipes)
    except UncountedError:
        return
    except UserError as error:
        yield str(error)
        return
    for check in (check_needs, check_release, _check_plan, _check_batches):
        try:
            check(config, pipeline)
        except UserError as error:
            yield str(error)
            return
        except RuntimeError:  # a value was asked for that is nowhere
            continue


def _check_plan(config: Config, pipeline: Pipeline) -> None:
    with answering(pipeline.pipe):
        student = Student(config, pipeline, NOWHERE)
    check_grids(config, student.plan, pipeline.reading.process)


def _check_batches(config: Config, pipeline: Pipeline) -> None:
    for stage in config.stages:
        _check_batch(config, stage, pipeline)


def _check_batch(config: Config, stage: StageConfig, pipeline: Pipeline) -> None:
    """Refuses what the first sample of a stage's data would be refused for."""
    needs = stage.objective.needs
    images = needs.images and not any(map(is_known, parts_of(config.data)))
    loader = loader_of(config, "data", batch=stage.train.batch, images=images)
    feed = Feed(pipeline, loader, NOWHERE, needs)
    with answering(pipeline.pipe):
        batch = feed.batch(0, 1, rng=torch.Generator(), shared_rng=torch.Generator())
    if batch.real is not None:
        _ = batch.x0
