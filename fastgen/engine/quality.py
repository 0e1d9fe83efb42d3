"""Quality while training: a generator is measured now and then, and the best weights of each stage are kept.

Quality peaks and then decays in distillation, and a loss does not show it. Measuring changes no number of the
training itself; what a stage leaves to the next one and to the export is its best, where `keep_best` is set.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config.evaluate import EvaluateConfig
from ..config.yaml_file import digest
from ..errors import CheckpointError
from ..files import atomic_folder, atomic_json
from ..manifest import MANIFEST, verify_manifest, write_manifest
from ..models.baking import baked, fused
from ..models.head_bank import HeadBank
from ..models.roles import Roles, put, taken, without_embeddings
from ..models.sequences import with_all_tokens
from ..models.sharding import brought_together
from ..stopping import interruptible
from .distributed import broadcast, gathered, on_first
from .feed import Feed
from .fitting import check_tensors
from .stage import Stage

_FILE = "generator.safetensors"


@dataclass(frozen=True)
class Yardstick:
    """How a generator is measured.

    Attributes:
        look: draws from a stage's generator, with the weights that it has now, this process's share of the samples;
            every process calls it.
        figures: of what they saw, in their order, by name; the first process calls it.
        metric: the figure that decides.
        gap: how far a value of that figure is from perfect; the smaller the better.
    """

    look: Callable[[Stage], Any]
    figures: Callable[[Sequence[Any]], Mapping[str, float]]
    metric: str
    gap: Callable[[float], float]


@dataclass(frozen=True)
class Best:
    """The best measurement of a stage: the deciding figure, and the images seen by then."""

    value: float
    images: int


class Quality:
    """The measurements of one stage.

    Args:
        yardstick: None measures nothing.
        settings: when to measure, and what follows from it.
        folder: folder of the best weights.
    """

    def __init__(self, yardstick: Yardstick | None, settings: EvaluateConfig, folder: Path) -> None:
        self._yardstick, self._settings, self._folder = yardstick, settings, folder
        self.best: Best | None = None
        self.since = 0
        self.weights: dict[str, Tensor] = {}
        self._shown: dict[str, str] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` measurements brought nothing better."""
        return self._settings.patience is not None and self.since >= self._settings.patience

    @property
    def metric(self) -> str:
        return self._yardstick.metric if self._yardstick else ""

    @property
    def shown(self) -> dict[str, str]:
        """The latest and the best value, for the progress bar."""
        return self._shown

    def due(self, before: int, stage: Stage) -> bool:
        """Whether a measurement stands between `before` and the images of now, or the stage is at its end."""
        if self._yardstick is None:
            return False
        now, total = stage.position.images, stage.config.train.images
        return stage.done or passed(before, now, every=self._settings.every, total=total)

    def measure(self, stage: Stage) -> dict[str, float]:
        """Figures under "quality/..." of the averaged weights, the same on every process.

        Raises:
            CheckpointError: the best weights cannot be written.
            Stopped: a signal was heard while it measured, and nothing is changed.
        """
        assert self._yardstick is not None
        look, measured = self._yardstick.look, self._yardstick.figures
        with for_sampling(stage):
            seen = gathered(interruptible(lambda: look(stage)))
            figures = broadcast(on_first(interruptible(lambda: dict(measured(seen))))) or {}
            value = figures[self.metric]
            self.since += 1
            if self._better(value):
                self.best, self.since = Best(value, stage.position.images), 0
                self.weights = copied(stage) if self._settings.keep_best else {}
        if self.since == 0 and self.weights:
            about = {"stage": stage.config.name, "images": stage.position.images, "metric": self.metric}
            on_first(lambda: write_weights(self._folder, self.weights, about | figures))
        best = "none" if self.best is None else f"{self.best.value:.4g}"
        self._shown = {self.metric: f"{value:.4g} (best {best})"}
        return {f"quality/{name}": figure for name, figure in figures.items()}

    def verdict(self, stage: Stage) -> str | None:
        """Why a stage ends before its budget, if it does."""
        if stage.done or not self.exhausted:
            return None
        found = "no value was finite" if self.best is None else f"{self.best.value:.4g} stands"
        since = "" if self.best is None else f" since {self.best.images:,} images"
        return (
            f"stage {stage.config.name!r} stops at {stage.position.images:,} of {stage.config.train.images:,} images: "
            f"{self.metric} did not improve in {self.since} measurements ({found}{since})"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights, as JSON."""
        return {"of": self._identity, "best": asdict(self.best) if self.best else None, "since": self.since}

    def restore(self, state: Mapping[str, Any] | None, weights: Mapping[str, Tensor], stage: Stage) -> bool:
        """Puts back what a checkpoint holds; False where it was measured otherwise and is forgotten.

        Raises:
            CheckpointError: the best weights are of another network, or missing.
        """
        if state is None or state["of"] != self._identity:
            return state is None or state["best"] is None
        if state["best"] and self._settings.keep_best:
            check_tensors(copied(stage), weights, what="best weights (best)")
        self.best = Best(**state["best"]) if state["best"] else None
        self.since, self.weights = state["since"], dict(weights)
        return True

    @property
    def _identity(self) -> str:
        chosen = {"protocol", "num", "extractor", "reference", "metric", "keep_best"}
        return digest(self._settings.model_dump(mode="json", include=chosen))

    def _better(self, value: float) -> bool:
        assert self._yardstick is not None
        gap = self._yardstick.gap
        return math.isfinite(value) and (self.best is None or gap(value) < gap(self.best.value))


def passed(before: int, now: int, *, every: int | None, total: int, marks: int = 10) -> bool:
    """Whether a multiple of `every` images, or without it one of `marks` even marks in `total`, is in (before, now]."""
    if every is None:
        return now * marks // total > before * marks // total
    return now // every > before // every


@contextmanager
def for_sampling(stage: Stage) -> Iterator[None]:
    """Within, the generator has its averaged weights, and one process may call it alone, without gradients."""
    generator = stage.roles.network("generator")
    with averaged(stage), brought_together(generator.net), with_all_tokens(generator.parts):
        yield


def averaged(stage: Stage) -> AbstractContextManager[None]:
    """Within, the generator has its averaged weights, where an average is kept."""
    return nullcontext() if stage.ema is None else stage.ema.applied()


def copied(stage: Stage) -> dict[str, Tensor]:
    """The generator's weights as they are now, or its adapter's on a shared network, and its embeddings, on the CPU."""
    return taken(stage.roles.network("generator"))


def left_by(stage: Stage, *, asked: Collection[str] = ()) -> dict[str, dict[str, Tensor]]:
    """The weights that a stage leaves to the next: its generator's last, and their average where one is kept.

    Those of its fake score only where they are `asked` for.
    """
    weights = {role: taken(stage.roles.network(role)) for role in ("generator", *{"fake_score"}.intersection(asked))}
    if stage.ema is not None:
        with averaged(stage):
            weights["ema"] = copied(stage)
    return weights


def plain(roles: Roles, weights: Mapping[str, Tensor], feed: Feed) -> dict[str, Tensor]:
    """Turn weights from `copied` into weights of a stock network, without embeddings of further values.

    What the embeddings add at the student's stops is baked into the time embedding, see `fastgen.models.baking`. As a
    side effect the generator among the roles, whose training is over, gets these weights.
    """
    generator = roles.network("generator")
    if not generator.scalars:
        return dict(weights)
    put(generator, weights)
    own = without_embeddings(weights)
    if isinstance(generator.embeddings, HeadBank):
        return fused(generator, own, roles.plan.grids)
    return baked(generator, own, roles.plan.scalars, feed.example())


def write_weights(folder: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A folder with the weights and `about.json`, which appears whole or not at all; an older one is replaced.

    Raises:
        CheckpointError: the disk is full or refuses; what was there is untouched.
    """
    finite = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None for name, value in about.items()
    }
    try:
        with atomic_folder(folder, replace=True) as new:
            save_file(dict(weights), new / _FILE)
            atomic_json(new / "about.json", finite)
            write_manifest(new)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights {folder} could not be written: {error}. The checkpoints are untouched: free some space and "
            "go on with --resume"
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder of `write_weights`.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    if (folder / MANIFEST).exists():  # which version 0.1 did not write
        verify_manifest(folder, remedy="they are not used")
    try:
        return load_file(folder / _FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights {folder / _FILE} cannot be read: {error}") from error
