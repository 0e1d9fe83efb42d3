"""What a run costs on a card, as text: memory by part, seconds, several cards, and what would make it fit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.schema import Config, StageConfig
from ..engine.dtypes import teacher_dtype
from ..engine.memory import SHARES
from ..errors import UncountedError, UserError
from ..models.casting import cast
from ..models.pipelines.create import create
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.published import published
from ..models.pipelines.refusal import CheckError
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.weightless import answering, networks_of, weightless
from ..planning.card import NOWHERE
from ..planning.cards import GIB, MIB, Card
from ..planning.forecast import Forecast, Scene
from .checks import check_needs
from .plan import recipe_of
from .teacher import probed

CHANGES = (
    ("train.gradient_checkpointing=true",),
    ("train.micro_batch=1",),
    ("train.cuda_graphs=false",),
    ("train.precision=bf16",),
    ("train.optim.name=adamw8bit",),
    ("train.ema_device=cpu",),
    ("sharing=lora", "train.precision=bf16"),
    ("lora.base=nf4",),
    ("lora.rank=16",),
    ("sharing=lora", "lora.base=fp8", "train.precision=bf16", "train.gradient_checkpointing=true", "memory=low"),
)
"""Settings that save memory, those first that change least of what is trained."""
WORTH = 0.01
"""Share of the memory that a change has to save."""

Reload = Callable[[Sequence[str]], Config]
"""The config with further overrides."""


@dataclass(frozen=True)
class Change:
    """Overrides, and the bytes that they save."""

    overrides: tuple[str, ...]
    saves: float


@dataclass(frozen=True)
class Remedies:
    """Changes, and what a stage costs with all of them."""

    changes: list[Change]
    forecast: Forecast


def costs(config: Config, reload: Reload, *, card: Card, gpus: int, recipes: Path) -> Iterator[str]:
    """Lines of text for every stage.

    Args:
        reload: the config with further overrides, to try changes out.
        gpus: cards up to which several are told.

    Raises:
        UncountedError: the teacher's configs are not here, or its pipeline cannot be called without weights.
        UserError: the run is refused, whatever the weights are.
    """
    for index, stage in enumerate(config.stages):
        forecast = forecast_of(config, index, card=card, recipes=recipes)
        yield from _stage_lines(index, stage, forecast, card)
        for count in range(2, gpus + 1):
            yield _several(config, index, count, card=card, recipes=recipes)
        if not card.holds(forecast):
            yield from _remedy_lines(remedies(reload, index, forecast, card=card, recipes=recipes), card)


def forecast_of(config: Config, index: int, *, card: Card, recipes: Path, gpus: int = 1) -> Forecast:
    """What a stage costs on each of so many cards; as many blocks are computed again as `auto` would have to."""
    stage = config.stages[index]
    if stage.train.gradient_checkpointing != "auto":
        return _counted(config, stage, recipes, gpus)
    for share in (False, *SHARES):
        found = _counted(config, _with(stage, gradient_checkpointing=share), recipes, gpus)
        if card.holds(found):
            break
    return found


def _counted(config: Config, stage: StageConfig, recipes: Path, gpus: int) -> Forecast:
    pipeline = teacher_without_weights(config, recipes)
    check_needs(config, pipeline)
    try:
        return Scene(config, stage, pipeline).forecast(gpus=gpus)
    except RuntimeError:  # echoed blocks have no second derivative
        pipeline = teacher_without_weights(config, recipes)
    try:
        return Scene(config, stage, pipeline, echoed=False).forecast(gpus=gpus)
    except RuntimeError as error:
        raise UncountedError(
            f"stage {stage.name!r} cannot be counted without weights ({str(error).splitlines()[0][:200]}): its memory "
            "and its seconds are known only when it runs"
        ) from error


def teacher_without_weights(config: Config, recipes: Path) -> Pipeline:
    """The teacher of a run, its networks on the meta device, and all encoded that counting asks for.

    Raises:
        UncountedError: its configs are not here, or its pipeline cannot be called without weights.
        UserError: the run is refused, whatever the weights are.
    """
    try:
        pipe = _stock(config, recipes)
    except UserError as error:
        raise UncountedError(str(error)) from error
    with answering(pipe):
        try:
            pipeline = probed(config, pipe, test=False)
            for label in {pipeline.classes.start, *range(2)} & {pipeline.classes.start, *pipeline.classes}:
                pipeline.condition(2, labels=torch.tensor([label] * 2), prompts=["a", "a longer one"])
            _ = pipeline.told_in, pipeline.codec
        except CheckError as error:
            raise UncountedError(str(error)) from error
        except RuntimeError as error:
            raise UncountedError(
                f"{type(pipe).__name__} cannot be called without its weights ({str(error).splitlines()[0][:200]}), so "
                "that its costs cannot be counted"
            ) from error
    return pipeline


def _stock(config: Config, recipes: Path) -> StockPipeline:
    teacher, dtype = config.teacher, teacher_dtype(config)
    recipe = recipe_of(config, recipes)
    if recipe is not None:
        teacher = recipe.config.teacher
    if teacher.new is None:
        source = teacher.source
        if Path(source.path).is_file() and source.config is None:
            raise UserError(f"{source.path} is a single file: name the folder of its configs with teacher.config")
        path = source.config if source.config and Path(source.path).is_file() else source.path
        return _without_weights(path, dtype, source.revision)
    pipe = create(teacher.new.pipeline, teacher.new.parts, seed=0)
    for network in networks_of(pipe).values():
        cast(network.to(NOWHERE), dtype)
    return pipe


def _without_weights(path: str, dtype: torch.dtype, revision: str | None) -> StockPipeline:
    """The pipeline of a path, made of its configs, or else of published sizes where those are known."""
    known = published(path)
    try:
        return weightless(path, dtype=dtype, revision=revision)
    except UserError:
        if known is None:
            raise
    return known.built(dtype)


def _with(stage: StageConfig, **changed: object) -> StageConfig:
    return stage.model_copy(update={"train": stage.train.model_copy(update=changed)})


def _stage_lines(index: int, stage: StageConfig, forecast: Forecast, card: Card) -> Iterator[str]:
    highest, needed = forecast.highest, card.needs(forecast)

    def told(size: float) -> str:
        return _gib(size) if needed >= GIB else f"{size / MIB:>9.2f} MiB"

    yield f"stage {index}, {stage.name}, on one {card.name}:"
    for part in forecast.parts:
        yield f"  {part.name:<34}{told(part.bytes)}"
    yield f"  {'gradients':<34}{told(highest.gradients)}"
    where = f"in the turn of {'+'.join(highest.turn)}, {forecast.rows} samples a pass"
    yield f"  {'activations':<34}{told(highest.peak - highest.gradients)}, {where}"
    yield f"  {'workspace':<34}{told(card.workspace)}"
    if forecast.encoding:
        yield f"  {'while prompts are encoded':<34}{told(forecast.encoding)}, before the stage"
    fits = "fits" if card.holds(forecast) else "does not fit"
    yield f"  {'peak':<34}{told(needed)}, {fits} {card.memory / GIB:g} GiB"
    if forecast.recorded:
        yield f"  {'of it allocated':<34}{told(forecast.allocated + card.workspace)} at most, as PyTorch counts"
    work = forecast.work
    tflop = work.flops / 1e12
    counted = f"{tflop:,.0f}" if tflop >= 100 else f"{tflop:.3g}"
    yield f"  a cycle: {work.launches:,} launches, {counted} TFLOP, {_time(card.cycle(forecast))}"
    yield f"  the stage: {forecast.cycles:,} cycles, {_time(forecast.cycles * card.cycle(forecast))}"


def _several(config: Config, index: int, gpus: int, *, card: Card, recipes: Path) -> str:
    train = config.stages[index].train
    if train.batch % (gpus * (train.micro_batch or 1)):
        return f"  {gpus} cards: cannot share batches of {train.batch}"
    forecast = forecast_of(config, index, card=card, recipes=recipes, gpus=gpus)
    seconds = card.cycle(forecast, gpus=gpus)
    return (
        f"  {gpus} cards: {_gib(card.needs(forecast)).strip()} each, {_time(seconds)} a cycle, "
        f"{_time(forecast.cycles * seconds)} the stage"
    )


def remedies(reload: Reload, index: int, forecast: Forecast, *, card: Card, recipes: Path) -> Remedies:
    """The changes that make a stage fit a card, or all that help."""
    taken: list[Change] = []

    def planned(overrides: Sequence[str]) -> Forecast | None:
        try:
            return forecast_of(reload(overrides), index, card=card, recipes=recipes)
        except UserError:  # no such setting, or not with the others
            return None

    for change in CHANGES:
        found = planned([*_all(taken), *change])
        saves = forecast.bytes - found.bytes if found else 0
        if found is None or saves < WORTH * forecast.bytes:
            continue
        taken.append(Change(change, saves))
        forecast = found
        if card.holds(forecast):
            break
    return Remedies(*_without_needless(taken, forecast, planned, card))


def _remedy_lines(found: Remedies, card: Card) -> Iterator[str]:
    verdict = "it would fit with" if card.holds(found.forecast) else "it would not fit even with"
    yield f"  {verdict}{'' if found.changes else ' any setting known here'}"
    for one in found.changes:
        yield f"    {' '.join(one.overrides):<52} saves{_gib(one.saves)}"
    yield f"    peak then {_gib(card.needs(found.forecast)).strip()}, a cycle {_time(card.cycle(found.forecast))}"


def _without_needless(
    taken: list[Change], forecast: Forecast, planned: Callable[[Sequence[str]], Forecast | None], card: Card
) -> tuple[list[Change], Forecast]:
    """The changes and their forecast without those that later ones make needless; each is tried."""
    for one in list(taken[:-1]) if card.holds(forecast) else []:
        rest = [other for other in taken if other is not one]
        found = planned(_all(rest))
        if found is not None and card.holds(found):
            taken, forecast = rest, found
    return taken, forecast


def _all(changes: Sequence[Change]) -> list[str]:
    return [override for change in changes for override in change.overrides]


def _gib(size: float) -> str:
    return f"{size / GIB:>9.2f} GiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
