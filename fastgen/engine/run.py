"""A run from its config: stages one after the other, with checkpoints, previews and a log."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from ..config import Config
from ..config import Stage as StageConfig
from ..configfile import digest, dump, fingerprint
from ..data import Loader
from ..errors import CheckpointError
from ..files import atomic_text
from ..models.pipeline import Pipeline
from ..models.roles import weights_of
from . import checkpoint
from .build import AUTOCAST, Weights, build_roles
from .feed import Feed, PairSet
from .log import RunLog
from .loop import Stage, StageSpec
from .pairs import teacher_pairs
from .random import seed_of

Preview = Callable[[Stage, str], None]
"""Called with the stage and a name when a picture is due; the generator has its averaged weights."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the generator's weights, averaged where an average was kept, after each stage."""

    weights: dict[str, dict[str, Tensor]]
    seconds: dict[str, float]


class Run:
    """A config being carried out.

    Args:
        config: of the run.
        pipeline: the teacher.
        grids: process times of the exported scheduler, one grid for each declared step count.
        accelerator: device and processes.
        preview: makes pictures of the generator.
    """

    def __init__(
        self, config: Config, pipeline: Pipeline, *, grids: list[Tensor], accelerator: Accelerator, preview: Preview
    ) -> None:
        self.config, self.pipeline, self.grids = config, pipeline, grids
        self.accelerator, self.preview = accelerator, preview
        self.log = RunLog(accelerator, config.out)

    def train(self, *, resume: bool) -> Trained:
        """All stages; with `resume`, from the newest valid checkpoint on if there is one.

        Raises:
            CheckpointError: the newest checkpoints are damaged, or of a run with other settings.
            NonFiniteError: training broke down; the last checkpoint is intact.
        """
        snapshot = self._resumed() if resume else None
        start = snapshot.state["stage"] if snapshot else 0
        if snapshot is None:
            self.log.rewind(0, 0)
        if self.accelerator.is_main_process:
            atomic_text(self.config.out / "config.yaml", dump(self.config))
        weights: dict[str, dict[str, Tensor]] = {}
        finished: dict[str, dict[str, Tensor]] = {}
        seconds: dict[str, float] = {}
        for index, stage_config in enumerate(self.config.stages):
            if index < start:
                continue
            resumed = snapshot if index == start else None
            stage = self._stage(index, stage_config, weights if resumed is None else None)
            if resumed is not None:
                stage.restore(resumed)
            started = time.perf_counter()
            self._run(stage)
            seconds[stage_config.name] = time.perf_counter() - started
            weights = _left_by(stage)
            finished[stage_config.name] = weights.get("ema", weights["generator"])
            del stage  # its networks and moments must not stand beside the next stage's
        return Trained(finished, seconds)

    def _stage(self, index: int, config: StageConfig, weights: Weights | None) -> Stage:
        lora = self.config.lora if self.config.sharing == "lora" else None
        roles = build_roles(
            self.pipeline,
            config,
            grids=self.grids,
            weights=weights,
            seed=self.config.seed,
            sampler=self.config.student.sampler,
            lora=lora,
        )
        loader = Loader(self.config.data, seed=seed_of(self.config.seed, "data"), flip=self.config.flip)
        needs = config.objective.needs
        pairs = self._pairs(config) if "pairs" in needs else None
        feed = Feed(self.pipeline, loader, self.accelerator.device, needs, pairs)
        spec = StageSpec(config.name, index, config.objective, feed, config.train, self.config.seed)
        return Stage(spec, roles, self.accelerator)

    def _pairs(self, config: StageConfig) -> PairSet:
        loader = Loader(self.config.data, seed=seed_of(self.config.seed, "pairs"))
        settings = fingerprint(self.config)
        key = digest([settings[name] for name in ("pairs", "seed", "teacher", "data")] + [config.train.precision])
        teacher = self.pipeline.denoiser(autocast=AUTOCAST[config.train.precision])
        folder = self.config.out / "pairs"
        return teacher_pairs(
            folder, self.pipeline, teacher, self.config.pairs, loader=loader, key=key, accelerator=self.accelerator
        )

    def _run(self, stage: Stage) -> None:
        settings, position = stage.spec.settings, stage.position
        saved, every = position.images, self.config.checkpoints.every
        due = _Marks(settings.images, self.config.log.previews, start=position.images)
        with self.log.bar(stage.spec.name, total=settings.images, done=position.images) as bar:
            while not stage.done:
                figures = stage.cycle()
                bar.update(position.images - bar.n)
                if position.cycle % self.config.log.every == 0 or stage.done:
                    self._report(stage, figures)
                    bar.set_postfix({name.split("/")[1]: f"{v:.3g}" for name, v in figures.items() if "lr" not in name})
                if due.passed(position.images):
                    self._preview(stage)
                if stage.done or (every and position.images - saved >= every):
                    self._save(stage)
                    saved = position.images

    def _report(self, stage: Stage, figures: dict[str, float]) -> None:
        values = {"images": stage.position.images, **figures}
        step = stage.position.images + sum(s.train.images for s in self.config.stages[: stage.spec.index])
        self.log.write(stage=stage.spec.index, cycle=stage.position.cycle, step=step, values=values)

    def _preview(self, stage: Stage) -> None:
        if not self.accelerator.is_main_process:
            return
        name = f"{stage.spec.index}-{stage.spec.name}-{stage.position.images:09d}"
        if stage.ema is None:
            self.preview(stage, name)
        else:
            with stage.ema.applied():
                self.preview(stage, name)

    def _save(self, stage: Stage) -> None:
        if self.accelerator.is_main_process:
            snapshot = stage.snapshot()
            snapshot.state["fingerprint"] = fingerprint(self.config)
            step = sum(s.train.images for s in self.config.stages[: stage.spec.index]) + stage.position.images
            checkpoint.save(self.config.out / "checkpoints", step, snapshot, keep=self.config.checkpoints.keep)
        self.accelerator.wait_for_everyone()

    def _resumed(self) -> checkpoint.Snapshot | None:
        loaded = checkpoint.load_newest(self.config.out / "checkpoints", warn=self.log.say)
        if loaded is None:
            self.log.say(f"nothing to resume in {self.config.out}: starting from the beginning")
            return None
        state = loaded.snapshot.state
        changed = _differences(state["fingerprint"], fingerprint(self.config))
        if changed:
            raise CheckpointError(
                f"the checkpoint {loaded.path} was written with other settings ({'; '.join(changed[:10])}): resume "
                f"with the config saved in {self.config.out / 'config.yaml'}, or start in another folder (out=...)"
            )
        self.log.rewind(state["stage"], state["position"]["cycle"])
        self.log.say(f"resuming from {loaded.path}")
        return loaded.snapshot


class _Marks:
    """Evenly spread marks over a budget, the last at its end."""

    def __init__(self, total: int, count: int, *, start: int) -> None:
        self._marks = [total * (i + 1) / count for i in range(count) if total * (i + 1) / count > start]

    def passed(self, images: int) -> bool:
        """Whether a mark was reached since the last call."""
        before = len(self._marks)
        self._marks = [mark for mark in self._marks if mark > images]
        return len(self._marks) < before


def _left_by(stage: Stage) -> dict[str, dict[str, Tensor]]:
    own = weights_of(stage.roles["generator"])
    weights = {"generator": {k: v.detach().cpu().clone() for k, v in own.state_dict().items()}}
    if stage.ema is not None:
        with stage.ema.applied():
            weights["ema"] = {k: v.detach().cpu().clone() for k, v in own.state_dict().items()}
    return weights


def _differences(old: object, new: object, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in _differences(*pair, f"{path}.{i}")]
    return [] if old == new else [f"{path} was {old}, is {new}"]
