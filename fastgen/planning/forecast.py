"""What a stage of a run costs: memory by part and the work of a cycle, of its real roles without weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config.schema import Config, StageConfig
from ..engine.dtypes import base_of
from ..engine.roles import build_roles
from ..errors import UserError
from ..models.pipelines.pipeline import Pipeline
from ..models.roles import Roles
from ..models.walk import Plan
from ..objectives import Batch, Pair, Turn
from ..process import even_grid
from .card import NOWHERE, Numbers, OnCard, on_card
from .echo import Echoes
from .held import QUANTISED, Held, Part
from .meter import Meter, Tally
from .pools import KEPT, Pools


@dataclass(frozen=True)
class TurnCost:
    """A turn of a cycle on one card.

    Attributes:
        turn: roles that it trains.
        work: its work, of all micro-batches.
        peak: bytes that it needs at most beside the stage's parts.
        made: the same where calls of networks are made, as in the first cycle, and no graph of them is replayed.
        gradients: bytes of these that are the gradients of its roles.
        shared: bytes of the gradients that processes share where networks lie in slices.
    """

    turn: Turn
    work: Tally
    peak: int
    made: int
    gradients: int
    shared: int = 0


@dataclass(frozen=True)
class Forecast:
    """A stage on one of several cards.

    Attributes:
        parts: what lies in its memory all the time.
        turns: of a cycle, in order.
        cycles: of the whole stage.
        rows: samples of a forward pass.
        recorded: whether calls of networks are CUDA graphs.
        encoding: bytes before it, while prompts are encoded.
    """

    parts: tuple[Part, ...]
    turns: tuple[TurnCost, ...]
    cycles: int
    rows: int
    recorded: bool
    encoding: int = 0

    @property
    def highest(self) -> TurnCost:
        """The turn that allocates most."""
        return max(self.turns, key=lambda cost: cost.peak)

    @property
    def bytes(self) -> int:
        """What it needs at its peak, without what libraries keep for themselves; pools of graphs count throughout."""
        return max(sum(part.bytes for part in self.parts) + self.highest.peak, self.allocated)

    @property
    def allocated(self) -> int:
        """The peak as PyTorch counts it: a graph's pool is free until it is replayed, though nothing else can use it.

        So the most is allocated before the graphs are there, in the first cycle.
        """
        parts = sum(part.bytes for part in self.parts if part.name != KEPT)
        return max(parts + max(turn.made for turn in self.turns), self.encoding)

    @property
    def kept(self) -> int:
        """What nobody else can have between two turns: the parts, and where graphs add them up, gradients."""
        return sum(part.bytes for part in self.parts) + (self.highest.gradients if self.recorded else 0)

    def sliced(self, gpus: int) -> "Forecast":
        """The forecast with networks, gradients, moments and average in slices over cards; activations are whole."""
        saved = {turn: turn.shared - turn.shared // gpus for turn in self.turns}
        turns = (
            replace(t, peak=t.peak - saved[t], made=t.made - saved[t], gradients=t.gradients - saved[t])
            for t in self.turns
        )
        return replace(self, parts=tuple(part.on(gpus) for part in self.parts), turns=tuple(turns))

    @property
    def work(self) -> Tally:
        """The work of one cycle."""
        return sum((cost.work for cost in self.turns), Tally())


class Scene:
    """A stage's roles, without weights, in a meter.

    Args:
        config: settings of the run, of which the roles' are read.
        stage: settings of the stage.
        pipeline: the teacher without weights, what it is asked in training encoded.
        echoed: whether blocks that are alike are measured once; objectives that differentiate twice cannot.

    Raises:
        UserError: as `build_roles`.
    """

    def __init__(self, config: Config, stage: StageConfig, pipeline: Pipeline, *, echoed: bool = True) -> None:
        self.config, self.pipeline, self.echoed = config, pipeline, echoed
        train = stage.train.model_copy(
            update={"compile": False, "cuda_graphs": stage.train.graphed and not config.swaps}
        )
        self.stage = stage.model_copy(update={"train": train})
        self.meter = Meter()
        self._pools: Pools | None = None

    def forecast(self, *, gpus: int = 1) -> Forecast:
        """The costs on one of so many cards that share every batch."""
        train, cycle = self.stage.train, self.stage.objective.cycle
        rows = train.micro_batch or max(1, train.batch // gpus)
        passes, cycles = -(-train.batch // (gpus * rows)), self._cycles()
        with on_card(self.meter) as card:
            self._held = Held(self.config, self.stage, self.pipeline, self.roles, self.meter)
            parts = self._held.parts()
            known: dict[Turn, TurnCost] = {}
            costs = []
            with self._echoing(card):
                batch = self._batch(rows)
                for turn in cycle:
                    if turn not in known or train.reuse:
                        batch = batch if train.reuse else self._batch(rows)
                        self._taken(turn, replace(batch), passes)  # warms up: the first call does more than later ones
                        known[turn] = self._taken(turn, batch, passes)
                    costs.append(known[turn])
        if self._pools is not None:
            parts.append(Part(KEPT, self._pools.bytes))
        encoding = self._held.while_encoding()
        found = Forecast(tuple(parts), tuple(costs), cycles, rows, self._pools is not None, encoding)
        return found if train.sharding == "none" else found.sliced(gpus)

    @cached_property
    def roles(self) -> Roles:
        config, base = self.config, base_of(self.config)
        grids = [even_grid(steps) for steps in config.student.steps]
        return build_roles(
            self.pipeline,
            self.stage,
            plan=Plan(grids, config.student.sampler, boundary=self.pipeline.boundary),
            weights=None,
            seed=config.seed,
            guidance=config.student.guidance,
            process=config.process,
            sharing=config.sharing,
            lora=config.lora,
            base="bf16" if base in QUANTISED else base,
            recorder=self._recorder,
        )

    def _recorder(self) -> Pools:
        self._pools = Pools(self.meter)
        return self._pools

    def _cycles(self) -> int:
        train = self.stage.train
        turns = sum("generator" in turn for turn in self.stage.objective.cycle)
        return -(-train.images // (train.batch * turns))

    @contextmanager
    def _echoing(self, card: OnCard) -> Iterator[None]:
        if not self.echoed:
            yield
            return
        networks = {id(net): net for net in (getattr(role, "net", None) for role in self.roles.members.values()) if net}
        with Echoes(self.meter, card).within(list(networks.values())):
            yield

    def _taken(self, turn: Turn, batch: Batch, passes: int) -> TurnCost:
        held, meter, pools, start = self._held, self.meter, self._pools, self.meter.level
        acting = [role for role in turn if role in held.optimizers]
        if pools is not None:
            pools.begin()
        with self.roles.training(turn), meter.measured() as seen:
            terms = getattr(self.stage.objective, turn[0])(self.roles, batch)
            loss = torch.stack(list(terms.values())).sum()
            del terms
            kept = meter.level - start
            with meter.measured() as back:
                loss.backward()
                del loss
            summed = meter.level - start
            with meter.measured() as gathered:
                self.roles.collect_gradients(turn)
                clipped = [held.optimizers[role].clip() for role in acting]
        del clipped
        gradients, update = seen.left, max((held.updates[role] for role in acting), default=0)
        made = peak = seen.peak
        if pools is not None:  # a graph's memory is there for good, gradients of weights too
            pools.backward(max(0, back.peak - summed))
            peak = summed + max(kept - pools.left, gathered.peak)
        for role in acting:
            held.optimizers[role].zero_grad()
        peak, made = (max(size, gradients + update) for size in (peak, made))
        return TurnCost(turn, seen.work * passes, peak, made, gradients, held.shared_by(turn))

    def _batch(self, rows: int) -> Batch:
        pipeline, needs = self.pipeline, self.stage.objective.needs
        labels = torch.tensor([pipeline.classes.start] * rows)
        cond = pipeline.condition(rows, labels=labels, prompts=["a"] * rows).to(NOWHERE)
        sample = torch.empty((rows, *pipeline.shape), device=NOWHERE)
        pair = Pair(sample, sample) if needs.pairs else None
        real, asked = self._real(rows), ("a",) * rows
        changed = cond if needs.context else None
        return Batch(
            cond, pipeline.shape, Numbers(), torch.Generator(), real=real, pairs=pair, asked=asked, changed=changed
        )

    def _real(self, rows: int) -> Callable[[], Tensor]:
        """Encodes images of the data's size, where there is data here; else the samples are there without work."""
        pipeline = self.pipeline

        def encoded() -> Tensor:
            try:
                images = self.config.data.items([0]).images
            except (UserError, OSError):
                images = None
            if images is None:
                return torch.empty((rows, *pipeline.shape), device=NOWHERE)
            return pipeline.codec.encode(images.expand(rows, *images.shape[1:]).to(NOWHERE))

        return encoded
