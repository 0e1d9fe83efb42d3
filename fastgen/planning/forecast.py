"""What a stage of a run costs: memory by part and the work of a cycle, of its real roles without weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..config.schema import Config, StageConfig
from ..engine.dtypes import base_of
from ..engine.ema import EMA
from ..engine.optim import RoleOptimizer
from ..engine.roles import build_roles
from ..errors import UserError
from ..models.owned import owned
from ..models.pipelines.components import autoencoder_of
from ..models.pipelines.pipeline import Pipeline
from ..models.roles import Roles
from ..models.walk import Plan
from ..objectives import Batch, Pair, Turn, roles_of
from ..process import even_grid
from .card import NOWHERE, Numbers, OnCard, bytes_of, on_card, weights_of
from .echo import Echoes
from .meter import Meter, Tally

CODEC = "codec"
SMALL = 2**20
"""Bytes that are no line of their own."""
QUANTISED = {"int8": 0.5, "nf4": 0.25}
"""Share of a network's bytes in bf16."""


@dataclass(frozen=True)
class Part:
    """Something that lies in a card's memory for the whole stage, in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class TurnCost:
    """A turn of a cycle on one card.

    Attributes:
        turn: roles that it trains.
        work: its work, of all micro-batches.
        peak: bytes that it allocates at most beside the stage's parts.
        gradients: bytes of these that are the gradients of its roles.
    """

    turn: Turn
    work: Tally
    peak: int
    gradients: int


@dataclass(frozen=True)
class Forecast:
    """A stage on one of several cards.

    Attributes:
        parts: what lies in its memory all the time.
        turns: of a cycle, in order.
        cycles: of the whole stage.
        rows: samples of a forward pass.
        recorded: whether calls of networks are CUDA graphs.
    """

    parts: tuple[Part, ...]
    turns: tuple[TurnCost, ...]
    cycles: int
    rows: int
    recorded: bool

    @property
    def highest(self) -> TurnCost:
        """The turn that allocates most."""
        return max(self.turns, key=lambda cost: cost.peak)

    @property
    def bytes(self) -> int:
        """At its peak, without what libraries keep for themselves."""
        return sum(part.bytes for part in self.parts) + self.highest.peak

    def sliced(self, gpus: int) -> "Forecast":
        """With weights, gradients, moments and average in slices over so many cards; activations are whole."""
        parts = tuple(replace(part, bytes=part.bytes // gpus) if part.name != CODEC else part for part in self.parts)
        saved = 1 - 1 / gpus
        turns = (replace(t, peak=t.peak - int(saved * t.gradients), gradients=t.gradients // gpus) for t in self.turns)
        return replace(self, parts=parts, turns=tuple(turns))

    @property
    def work(self) -> Tally:
        """Of one cycle."""
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
        self.recorded = stage.train.graphed
        train = stage.train.model_copy(update={"compile": False, "cuda_graphs": False})
        self.stage = stage.model_copy(update={"train": train})
        self.meter = Meter()
        self._optimizers: dict[str, RoleOptimizer] = {}

    def forecast(self, *, gpus: int = 1) -> Forecast:
        """On one of so many cards that share every batch."""
        train, cycle = self.stage.train, self.stage.objective.cycle
        rows = train.micro_batch or max(1, train.batch // gpus)
        parts, cycles = -(-train.batch // (gpus * rows)), self._cycles()
        with on_card(self.meter) as card:
            lying = tuple(self._lying())
            known: dict[Turn, TurnCost] = {}
            costs = []
            with self._echoing(card):
                batch = self._batch(rows)
                for turn in cycle:
                    if turn not in known or train.reuse:
                        batch = batch if train.reuse else self._batch(rows)
                        self._taken(turn, replace(batch), parts)  # what a first call alone does is no part of a cycle
                        known[turn] = self._taken(turn, batch, parts)
                    costs.append(known[turn])
        found = Forecast(lying, tuple(costs), cycles, rows, self.recorded)
        return found if train.sharding == "none" else found.sliced(gpus)

    @cached_property
    def roles(self) -> Roles:
        config, base = self.config, base_of(self.config)
        grids = [even_grid(steps) for steps in config.student.steps]
        return build_roles(
            self.pipeline,
            self.stage,
            student=Plan(grids, config.student.sampler, boundary=self.pipeline.boundary),
            weights={},
            seed=config.seed,
            guidance=config.student.guidance,
            process=config.process,
            sharing=config.sharing,
            lora=config.lora,
            base="bf16" if base in QUANTISED else base,
        )

    def _cycles(self) -> int:
        train = self.stage.train
        turns = sum("generator" in turn for turn in self.stage.objective.cycle)
        return -(-train.images // (train.batch * turns))

    def _lying(self) -> Iterator[Part]:
        """All that is there between two turns."""
        meter = self.meter
        trained, members = roles_of(self.stage.objective), self.roles.members
        lent = set(map(id, self.pipeline.network.parameters()))
        own = {name: bytes_of([p for p in self.roles.parameters(name) if id(p) not in lent]) for name in members}
        share = QUANTISED.get(base_of(self.config), 1) if self.config.sharing == "lora" else 1
        yield Part("teacher's network", int(weights_of(self.pipeline.network) * share))
        codec = autoencoder_of(self.pipeline.pipe) if self.pipeline.pipe is not None else None
        yield from [Part(CODEC, weights_of(codec))] if isinstance(codec, nn.Module) else []
        for name, size in own.items():
            yield from [Part(f"{name}: weights", size)] if size else []
        copies = meter.level - sum(own.values())
        yield from [Part("copies that layers compute with", copies)] if copies > SMALL else []
        for name in trained:
            if self.roles.parameters(name):
                before = meter.level
                self._moments(name)
                yield Part(f"{name}: moments", meter.level - before)
        if self.stage.train.ema is not None and self.stage.train.ema_device == "auto":
            before = meter.level
            self._average = EMA(self.roles["generator"], decay=self.stage.train.ema)
            yield Part("generator: average", meter.level - before)

    def _moments(self, role: str) -> None:
        """An optimizer's state, which its first step makes; its temporaries are those of a loop over tensors."""
        optimizer = RoleOptimizer(owned(self.roles[role]), self.stage.train.optim_of(role), total=1)
        self._optimizers[role] = optimizer
        for parameter in optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        peak = self.meter.peak
        optimizer.step()
        optimizer.zero_grad()
        self.meter.peak = peak

    @contextmanager
    def _echoing(self, card: OnCard) -> Iterator[None]:
        if not self.echoed:
            yield
            return
        networks = {id(net): net for net in (getattr(role, "net", None) for role in self.roles.members.values()) if net}
        with Echoes(self.meter, card).within(list(networks.values())):
            yield

    def _taken(self, turn: Turn, batch: Batch, parts: int) -> TurnCost:
        acting = [role for role in turn if role in self._optimizers]
        with self.roles.training(turn), self.meter.measured() as seen:
            terms = getattr(self.stage.objective, turn[0])(self.roles, batch)
            loss = torch.stack(list(terms.values())).sum()
            del terms
            loss.backward()
            del loss
            self.roles.collect_gradients(turn)
            clipped = [self._optimizers[role].clip() for role in acting]
        del clipped
        gradients = seen.left
        for role in acting:
            self._optimizers[role].zero_grad()
        return TurnCost(turn, seen.work * parts, seen.peak, gradients)

    def _batch(self, rows: int) -> Batch:
        pipeline, needs = self.pipeline, self.stage.objective.needs
        labels = torch.tensor([pipeline.classes.start] * rows)
        cond = pipeline.condition(rows, labels=labels, prompts=["a"] * rows).to(NOWHERE)
        sample = torch.empty((rows, *pipeline.shape), device=NOWHERE)
        pair = Pair(sample, sample) if needs.pairs else None
        return Batch(cond, pipeline.shape, Numbers(), torch.Generator(), real=self._real(rows), pairs=pair)

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
