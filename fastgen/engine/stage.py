"""The training loop: for each turn of a cycle, forward, backward, average, check, step. It knows no maths."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config.guards import USUAL, GuardsConfig
from ..config.schema import StageConfig
from ..errors import TrainingError
from ..models.precision import allowing_tf32
from ..models.roles import Roles
from ..models.sharding import Slice, collect
from ..objectives import Batch, Terms, Turn
from ..seeds import RowStream, stream
from ..stopping import stop_signal
from .averaging import Averager
from .checkpoint import Snapshot
from .distributed import agreed, average
from .ema import EMA
from .feed import Feed
from .fitting import load_module, restore_scaler
from .guard import Guard
from .moments import Moments
from .optim import optimizers_of
from .progress import Drawn, Position, Turned
from .restore import (
    NO_OPTIMIZER,
    OptimizerSnapshot,
    in_pieces,
    optimizer_snapshot,
    put_together,
    restore_optimizer,
)
from .rewarded import rewards_of
from .sharding import forget_calls
from .splitting import micro_batches


class Stage:
    """One objective being trained on its roles.

    Nothing waits for the device before a cycle is over: whether a turn is sound decides there over its updates and
    those of the turns after it, and is read with the cycle's figures, for which the host waits when it has read what
    comes next. Under fp16, whose loss scaler skips turns and goes on, and where an optimizer is not fused, every turn
    is waited for. The average follows the generator's update at once where that is known to be sound, or where a thread
    of its own finds it out; otherwise when the cycle is over.

    Args:
        config: name, objective and settings of the stage.
        feed: batches of the stage by position.
        index: place of the stage in the run.
        seed: seed of the run.
        sparing: moments of the roles that a turn does not train are in main memory.
        guards: what is done where a turn is out of line.

    Raises:
        UserError: the batch cannot be split over the processes.
    """

    def __init__(
        self,
        config: StageConfig,
        roles: Roles,
        feed: Feed,
        accelerator: Accelerator,
        *,
        index: int = 0,
        seed: int = 0,
        sparing: bool = False,
        guards: GuardsConfig = USUAL,
    ) -> None:
        self.config, self.roles, self.feed, self.accelerator = config, roles, feed, accelerator
        self.index, self.seed, self.sparing = index, seed, sparing
        self.position = Position()
        self.asked_to_stop = False  # of all processes, by a signal to any of them, as of the last cycle
        settings, cycle = config.train, config.objective.cycle
        generator_turns = sum("generator" in turn for turn in cycle)
        self.cycles = math.ceil(settings.images / (settings.batch * generator_turns))
        self.micro, self._parts = micro_batches(settings, accelerator.num_processes)
        self._first: int = accelerator.process_index // settings.sequence_parallel * self._parts
        self.optimizers = optimizers_of(config, roles, cycles=self.cycles, seed=(seed, index))
        self.graphed = settings.graphed and accelerator.device.type == "cuda"
        self._trained = {turn: self._trained_in(turn) for turn in cycle}
        self._averagers = {turn: Averager(_whole(p), early=not self.graphed) for turn, p in self._trained.items()}
        aside = settings.ema_device == "cpu"
        self.ema = None if settings.ema is None else EMA(roles["generator"], decay=settings.ema, aside=aside)
        half, device = settings.precision == "fp16", accelerator.device.type
        self._scalers = {turn[0]: torch.amp.GradScaler(device, enabled=half) for turn in cycle}
        self._waits = half or not all(optimizer.fused for optimizer in self.optimizers.values())
        self._at_once = aside or self._waits
        self.guard = Guard(guards, config.name, half=half, device=accelerator.device)
        self._drawn = Drawn(0, range(0))
        steppers = {role: optimizer.optimizer for role, optimizer in self.optimizers.items()}
        self._moments = Moments(steppers if sparing else {}, accelerator.device)

    @property
    def sharded(self) -> bool:
        """Whether a snapshot is brought together by all processes."""
        return any(isinstance(p, Slice) for trained in self._trained.values() for p in trained)

    @property
    def share(self) -> float:
        """The share of the stage that is done, from 0 to 1: in images, or in minutes where these end it sooner."""
        train, position = self.config.train, self.position
        timed = 0.0 if train.minutes is None else position.seconds / (60 * train.minutes)
        return min(1.0, max(timed, position.images / train.images))

    @property
    def done(self) -> bool:
        return self.share >= 1

    def cycle(self) -> dict[str, float]:
        """One pass over the objective's turns; returns their losses, gradient norms and learning rates.

        Raises:
            TrainingError: a loss or gradient is not finite, or spiked where that stops a run; no optimizer has stepped
                in that turn, or after it.
        """
        with allowing_tf32(self.config.train.tf32):
            return self._cycle()

    def _cycle(self) -> dict[str, float]:
        start = time.perf_counter()
        figures: dict[str, float] = {}
        taken: list[Turned] = []
        batches: list[Batch] = []
        for number, (after, turn) in enumerate(pairwise(((), *self.config.objective.cycle))):
            if not batches or not self.config.train.reuse:
                batches = self._batches(number)
            for batch in batches:
                batch.after = after
            if "generator" in turn and not self._at_once:  # the average follows every update
                figures |= self._settled(taken)
            taken.append(self._turn(turn, batches))
        if not self.done:
            self.feed.prepare(self.position.drawn + self._first * self.micro, self.micro)
        figures |= self._settled(taken) | rewards_of(self.roles)
        if self.config.train.sharding != "none":
            forget_calls(self.roles)
        self.position.cycle += 1
        took = time.perf_counter() - start
        seconds, self.asked_to_stop = agreed(took, stop_signal() is not None, self.accelerator.device)
        self.position.seconds += seconds
        return figures

    def _trained_in(self, turn: Turn) -> list[nn.Parameter]:
        """The parameters that optimizers step after a turn."""
        return [p for role in turn if role in self.optimizers for p in self.optimizers[role].parameters]

    def _turn(self, turn: Turn, batches: list[Batch]) -> Turned:
        acting = [role for role in turn if role in self.optimizers]
        optimizers = [self.optimizers[role] for role in acting]
        averager, parts = self._averagers[turn], len(batches)
        self._moments.attend(acting)
        with self.roles.training(turn):
            terms = [self._backward(turn, batch, parts=parts) for batch in batches[:-1]]
            with averager.listening():
                terms.append(self._backward(turn, batches[-1], parts=parts))
        averager.finish()
        for optimizer in optimizers:
            self._scalers[turn[0]].unscale_(optimizer.optimizer)
        taken = self._turned(turn, terms, {role: self.optimizers[role].clip() for role in acting})
        taken.stepped = not self._waits or self.guard.passes(taken, self.position.cycle)
        if taken.stepped:
            blocked = None if self._waits else self.guard.blocked(taken)
            if self.ema is not None and "generator" in turn:
                self.ema.settle()
            self._moments.wait()
            for optimizer in optimizers:
                optimizer.step(blocked=blocked)
            self.position.images += self.config.train.batch * ("generator" in turn)
            if self.ema is not None and self._at_once and "generator" in turn:
                self.ema.update(blocked=blocked)
        self._scalers[turn[0]].update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        return taken

    def _settled(self, taken: list[Turned]) -> dict[str, float]:
        """Read the figures of the turns taken, and let the average follow those generator turns that were stepped."""
        figures: dict[str, float] = {}
        for place, one in enumerate(taken):
            if not self._waits:
                self._confirm(taken[place:])
            if one.stepped and self.ema is not None and not self._at_once and "generator" in one.turn:
                self.ema.update()
            figures |= one.figures
        taken.clear()
        return figures

    def _confirm(self, turns: Sequence[Turned]) -> None:
        """Learn whether the device stepped the first of these turns; if not, take its images and updates back."""
        first = turns[0]
        try:
            first.stepped = self.guard.passes(first, self.position.cycle)
        except TrainingError:
            self._take_back(turns)
            raise
        if not first.stepped:
            self._take_back(turns[:1])

    def _take_back(self, turns: Sequence[Turned]) -> None:
        for one in turns:
            self.position.images -= self.config.train.batch * ("generator" in one.turn)
            for role in self.optimizers.keys() & set(one.turn):
                self.optimizers[role].updates -= 1

    def _backward(self, turn: Turn, batch: Batch, *, parts: int) -> Terms:
        terms: Terms = getattr(self.config.objective, turn[0])(self.roles, batch)
        loss = torch.stack(list(terms.values())).sum() / parts
        self._scalers[turn[0]].scale(loss).backward()
        self.roles.collect_gradients(turn)
        collect(self._trained[turn])
        return {term: value.detach() / parts for term, value in terms.items()}

    def _batches(self, number: int) -> list[Batch]:
        """This process's micro-batches for a turn, each with the random stream of its rows of the whole batch."""
        device, place = self.accelerator.device, (self.seed, self.index, self.position.cycle, number)
        batches = []
        for part in range(self._parts):
            i = self._first + part
            batch = self.feed.batch(
                self.position.drawn + i * self.micro,
                self.micro,
                rng=RowStream(device, *place, first=i * self.micro, count=self.micro),
                shared_rng=stream(torch.device("cpu"), *place, "shared"),
            )
            batch.images, batch.part = self.position.images, part
            batches.append(batch)
        start, self.position.drawn = self.position.drawn, self.position.drawn + self.config.train.batch
        self._drawn = Drawn(number, range(start, self.position.drawn))
        return batches

    def _turned(self, turn: Turn, terms: list[Terms], norms: dict[str, Tensor]) -> Turned:
        """A turn's figures: losses, averaged over micro-batches and processes, gradient norms and learning rates."""
        names = [f"{turn[0]}/{term}" for term in terms[0]] + [f"{role}/grad" for role in norms]
        losses = [torch.stack([part[term] for part in terms]).sum() for term in terms[0]]
        values = average(torch.stack([value.float() for value in [*losses, *norms.values()]]))
        judged = self.guard.judged(turn, values)
        rates = {f"{role}/lr": self.optimizers[role].lr for role in norms}
        return Turned(turn, self._drawn, names, judged, rates)

    def snapshot(self) -> Snapshot:
        """All that resuming this stage needs; the networks that are plainly the teacher's are left out.

        What is sharded is sharded in it too: `checkpoint.written_together` makes whole tensors of it.
        """
        self._moments.settle()
        tensors = {role: dict(self.roles[role].state_dict()) for role in self.roles.own}
        tensors |= {"guard": past} if (past := self.guard.state()) else {}
        groups = {}
        for role, optimizer in self.optimizers.items():
            packed = in_pieces(optimizer_snapshot(optimizer.optimizer), self.roles.trained(role))
            tensors[f"optimizer.{role}"] = packed.tensors
            groups[role] = {"groups": packed.groups, "updates": optimizer.updates}
        state: dict[str, Any] = {
            "stage": self.index,
            "position": vars(self.position).copy(),
            "optimizers": groups,
            "scalers": {name: scaler.state_dict() for name, scaler in self._scalers.items()},
            "ema_updates": self.ema.updates if self.ema else None,
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.sharded
        return Snapshot(tensors, state)

    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot of this stage back.

        Raises:
            CheckpointError: it does not fit the networks.
        """
        for role in self.roles.own:
            load_module(self.roles[role], snapshot.group(role), what=role)
        for role in self.optimizers:
            self._restore_optimizer(role, snapshot)
        for name, scaler in self._scalers.items():
            restore_scaler(scaler, snapshot.state["scalers"].get(name, {}), what=name)
        if self.ema is not None:
            self.ema.load(snapshot.group("ema"), updates=snapshot.state["ema_updates"] or 0)
        self.guard.restore(snapshot.tensors.get("guard", {}))
        self.position = Position(**snapshot.state["position"])

    def _restore_optimizer(self, role: str, snapshot: Snapshot) -> None:
        optimizer, saved = self.optimizers[role], snapshot.state["optimizers"].get(role, NO_OPTIMIZER)
        packed = OptimizerSnapshot(dict(snapshot.group(f"optimizer.{role}")), saved["groups"])
        restore_optimizer(optimizer.optimizer, put_together(packed, self.roles.trained(role)))
        optimizer.updates = saved["updates"]


def _whole(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are not sharded: their gradients are averaged here, those of slices by FSDP2."""
    return [p for p in parameters if not isinstance(p, Slice)]
