"""A run from its config: stages one after the other, with checkpoints, previews and a log."""

import gc
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config.schema import Config, StageConfig
from ..config.yaml_file import fingerprint, save
from ..models.pipelines.pipeline import Pipeline
from ..models.regions import Recompilations
from ..models.roles import Roles
from ..models.walk import Plan
from ..stopping import Stopped, at_once, deferred, stop_signal
from . import checkpoint
from .distributed import broadcast, is_first, on_first, signal_of_any
from .dtypes import base_of
from .exhaustion import memory_told
from .feed import Feed
from .feeding import build_feed
from .finished import carried, finished_before, named
from .incidents import Incidents
from .lineage import Weights
from .log import RunLog
from .materials import Material, Materials, check_materials, materials
from .memory import settle_recompute
from .previews import Preview, Previews
from .progress import Boundary
from .quality import Quality, Yardstick, left_by, passed, plain, write_weights
from .resume import due_again, resumed
from .roles import build_roles
from .saved import FORMAT
from .sequences import part_sequences
from .sharding import shard_roles
from .stage import Stage
from .telling import Telling, step_at


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the generator's weights after each stage, averaged where an average was kept.

    They are the stage's last, or with `evaluate.keep_best` the best of those that were measured.
    """

    weights: dict[str, dict[str, Tensor]]


class Run:
    """A config being carried out.

    Args:
        config: settings of the run.
        pipeline: the teacher.
        plan: stops of the exported scheduler, in the teacher's own process times.
        accelerator: device and processes.
        preview: makes pictures of the generator; None makes none.
        yardstick: measures the generator now and then; None never does.
        begin: what the first stage goes on from; nothing of it is the teacher.
    """

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        *,
        plan: Plan,
        accelerator: Accelerator,
        preview: Preview | None,
        yardstick: Yardstick | None = None,
        begin: Callable[[RunLog | None], Weights] = lambda _: {},
    ) -> None:
        self.config, self.pipeline, self.plan = config, pipeline, plan
        self.accelerator, self.yardstick, self.begin = accelerator, yardstick, begin
        self.log = RunLog(accelerator, config.out)
        self._made_of: dict[Material, Mapping[str, str]] = {}
        self.incidents = Incidents(self.log, config.out / "incidents")
        self.previews = Previews(preview, self.log)

    def train(self, *, resume: bool, allow_changed: Collection[Material] = ()) -> Trained:
        """Trains all stages; with `resume`, from the newest valid checkpoint on if there is one.

        Args:
            allow_changed: what may have other contents than it had when the checkpoint was written.

        Raises:
            CheckpointError: the newest checkpoints are damaged, or of a run with other settings or contents.
            TrainingError: training broke down; the last checkpoint is intact.
            NoMemoryError: a stage needs more memory than there is.
            Stopped: a signal was heard, and everything up to the last cycle is in a checkpoint.
        """
        self._made_of = broadcast(on_first(lambda: materials(self.config)) or {})
        snapshot = resumed(self.config, self._made_of, allowed=allow_changed, say=self.log.say) if resume else None
        start = snapshot.state["stage"] if snapshot else 0
        at = snapshot.state["position"] if snapshot else {"cycle": -1, "images": -1}
        due = snapshot is not None and due_again(snapshot)
        self.log.rewind(start, at["cycle"], due=due)
        self.log.begin(step_at(self.config, start, at["images"] + (not due)))
        on_first(lambda: save(self.config, self.config.out))
        finished = finished_before(self.config, start, say=self.log.say) if is_first() else {}
        weights = {} if snapshot else self.begin(self.log)
        for index, stage_config in enumerate(self.config.stages[start:], start):
            begun = snapshot if index == start else None
            with memory_told(f"building stage {stage_config.name!r}", stage=index):
                known = {**weights, **named(self.config, index, finished)} if begun is None else None
                stage = self.stage(index, known)
            if begun is not None:
                self._check_pairs(begun, stage, allow_changed)
            quality = Quality(self.yardstick, self.config.evaluate, self.config.out / "best")
            if begun is not None:
                stage.restore(begun)
                self._restore(quality, begun, stage)
            self._run(stage, quality, Boundary.of(begun.state.get("boundary")) if begun else None)
            weights = _left_by(stage, quality, asked=carried(self.config, index + 1))
            latest = weights.get("ema", weights["generator"])
            finished[stage_config.name] = plain(stage.roles, latest, stage.feed)
            self._finish(stage, quality, finished[stage_config.name])
            del stage
            self._let_go(stage_config)
        return Trained(finished)

    def _let_go(self, config: StageConfig) -> None:
        """Frees a stage that is over, whose networks and graphs hold each other, before the next is built."""
        gc.collect()
        torch.cuda.empty_cache()
        if config.train.sharding != "none":
            self.pipeline.network.to(self.accelerator.device)  # whole, where its slices were

    def _check_pairs(self, snapshot: checkpoint.Snapshot, stage: Stage, allowed: Collection[Material]) -> None:
        """Pairs follow the teacher and the data, and are others only where these were allowed to be."""
        saved: Materials = snapshot.state.get("made_of", {})
        if stage.feed.pairs is not None and not allowed:
            held: Materials = {"pairs": {"sha256": stage.feed.pairs.sha256}}
            check_materials(saved, held, self.config.out / "checkpoints")

    def _restore(self, quality: Quality, snapshot: checkpoint.Snapshot, stage: Stage) -> None:
        if not quality.restore(snapshot.state.get("quality"), snapshot.tensors.get("best", {}), stage):
            self.log.say("what is measured has changed (evaluate): the best weights so far are forgotten")

    def _finish(self, stage: Stage, quality: Quality, weights: dict[str, Tensor]) -> None:
        name, position = stage.config.name, stage.position
        about = {"stage": name, "images": position.images, "seconds": round(position.seconds, 3)}
        on_first(lambda: write_weights(self.config.out / "stages" / name, weights, about))
        best = quality.best
        if quality.weights and best is not None and best.images < position.images:
            self.log.say(
                f"stage {name!r} was best at {best.images:,} images ({quality.metric} {best.value:.4g}): these weights "
                "are used, not the last"
            )

    def stage(self, index: int, weights: Weights | None) -> Stage:
        """One of the run's stages, untrained.

        Args:
            weights: what the stage before left; None leaves the generator to a checkpoint.
        """
        config = self.config.stages[index]
        roles, feed = self.roles(config, weights), self.feed(config)
        if shard_roles(roles, config.train.sharding, self.accelerator.device):
            self.pipeline.network.to("cpu")  # whole, it would stand beside the slices
        part_sequences(roles, feed, config.objective, config.train.sequence_parallel)
        run, sparing = self.config, self.config.memory == "low"
        stage = Stage(
            config, roles, feed, self.accelerator, index=index, seed=run.seed, sparing=sparing, guards=run.guards
        )
        found = settle_recompute(stage)
        if found is not None:
            self.log.say(found)
        return stage

    def roles(self, config: StageConfig, weights: Weights | None) -> Roles:
        """The roles of a stage, with the weights that they start from."""
        return build_roles(
            self.pipeline,
            config,
            plan=self.plan,
            weights=weights,
            seed=self.config.seed,
            guidance=self.config.student.guidance,
            process=self.config.process,
            sharing=self.config.sharing,
            lora=self.config.lora,
            base=base_of(self.config),
        )

    def feed(self, config: StageConfig) -> Feed:
        """The batches of a stage, see `build_feed`."""
        return build_feed(
            self.config,
            config,
            self.pipeline,
            accelerator=self.accelerator,
            made_of=self._made_of,
            say=self.log.say,
        )

    def _run(self, stage: Stage, quality: Quality, boundary: Boundary | None) -> None:
        """Cycles, and what is due at the boundaries between them, first at `boundary`, where the run before stopped.

        A signal is answered at a boundary, once the work so far is saved; before there is any, at once.

        Raises:
            Stopped: there was one.
        """
        position, recompilations = stage.position, Recompilations(bool(stage.config.train.compile))
        with Telling(self.log, self.config, stage, self.accelerator.device) as told, deferred():
            if position.cycle == 0 and self.yardstick is not None:
                told.report(self._measured(stage, quality), quality)
            work = boundary is not None
            while boundary is not None or not (stage.done or quality.exhausted):
                if boundary is None:
                    with nullcontext() if work else at_once():
                        boundary, work = self._cycle(stage, recompilations), True
                try:
                    self._attend(stage, quality, boundary, told)
                except Stopped as stop:
                    self._save(stage, quality, boundary)
                    kept = f"saved at {position.images:,} images of stage {stage.config.name!r}"
                    raise Stopped(stop.number, kept) from None
                boundary = None

    def _cycle(self, stage: Stage, recompilations: Recompilations) -> Boundary:
        before, training = stage.position.images, f"cycle {stage.position.cycle} of stage {stage.config.name!r}"
        with memory_told(training, stage=stage.index), recompilations.cycle() as reasons, self.incidents.noted(stage):
            figures = stage.cycle()
        if reasons:
            self.log.say(f"cycle {stage.position.cycle} waited for {len(reasons)} blocks to be compiled: {reasons[0]}")
        return Boundary(before, figures)

    def _attend(self, stage: Stage, quality: Quality, boundary: Boundary, told: Telling) -> None:
        """Does what is due at a boundary.

        Raises:
            Stopped: a signal was heard, and nothing of it is done yet.
        """
        position, log, figures = stage.position, self.config.log, boundary.figures
        told.move()
        if stage.asked_to_stop:
            raise Stopped(signal_of_any(stop_signal()))
        measured = self._measured(stage, quality) if quality.due(boundary.before, stage) else {}
        ends = stage.done or quality.exhausted
        reached = partial(passed, boundary.before, position.images, total=stage.config.train.images)
        if position.cycle % log.every == 0 or ends or measured:
            told.report(figures | measured, quality, note=quality.verdict(stage))
        if log.previews and (ends or reached(every=None, marks=log.previews)):
            self.previews.draw(stage, step_at(self.config, stage.index, position.images))
        if ends or reached(every=self.config.checkpoints.every):
            self._save(stage, quality)

    def _measured(self, stage: Stage, quality: Quality) -> dict[str, float]:
        with memory_told(f"a measurement in stage {stage.config.name!r}", stage=stage.index):
            return quality.measure(stage)

    def _save(self, stage: Stage, quality: Quality, boundary: Boundary | None = None) -> None:
        """A checkpoint; with what is due at a boundary for the run that goes on from it."""

        def write(snapshot: checkpoint.Snapshot) -> None:
            step = step_at(self.config, stage.index, stage.position.images)
            checkpoint.save(self.config.out / "checkpoints", step, snapshot, keep=self.config.checkpoints.keep)

        held = stage.snapshot() if is_first() or stage.sharded else checkpoint.Snapshot({}, {})
        best = {"best": quality.weights} if quality.weights else {}
        pairs: Materials = {"pairs": {"sha256": stage.feed.pairs.sha256}} if stage.feed.pairs else {}
        about = {
            "format": FORMAT,
            "fingerprint": fingerprint(self.config),
            "quality": quality.state(),
            "made_of": {**self._made_of, **pairs},
        }
        about |= {} if boundary is None else {"boundary": boundary.state()}
        checkpoint.written_together(checkpoint.Snapshot({**held.tensors, **best}, {**held.state, **about}), write)


def _left_by(stage: Stage, quality: Quality, *, asked: Collection[str]) -> dict[str, dict[str, Tensor]]:
    weights = left_by(stage, asked=asked)
    if quality.weights:
        weights["generator" if stage.ema is None else "ema"] = quality.weights
    return weights
