"""What lies in a card's memory between the turns of a stage, told by what makes it: roles, rules and averages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from ..config.schema import Config, StageConfig
from ..engine.dtypes import base_of
from ..engine.ema import EMA
from ..engine.optim import RoleOptimizer
from ..engine.sharding import networks_of
from ..models.contract import Published
from ..models.masters import low_of
from ..models.offload import bytes_with_swap
from ..models.pipelines.components import autoencoder_of, encoders_of
from ..models.pipelines.pipeline import Pipeline
from ..models.roles import Roles
from ..models.sharding import bytes_together
from ..objectives import Turn, roles_of
from .card import NOWHERE, bytes_of, module_bytes
from .meter import Meter

SMALL = 2**20
"""Bytes that are no line of their own."""
QUANTISED = {"int8": 0.5, "nf4": 0.25}
"""Share of a network's bytes in bf16."""


@dataclass(frozen=True)
class Part:
    """Something that lies in a card's memory for the whole stage.

    Attributes:
        bytes: its size on one card that has all of it.
        sliced: whether processes share it where networks lie in slices.
    """

    name: str
    bytes: int
    sliced: bool = False

    def on(self, cards: int) -> "Part":
        """What each of so many cards has of it."""
        return replace(self, bytes=self.bytes // cards) if self.sliced else self


@dataclass
class Held:
    """All that is there between two turns of a stage.

    Args:
        config, stage: settings of the run and of the stage.
        pipeline, roles: the teacher, and who acts, without weights.
        meter: meter that the roles were made in.

    Attributes:
        optimizers: of the trained roles, their states made.
        updates: role -> bytes that its optimizer's step computes with.
    """

    config: Config
    stage: StageConfig
    pipeline: Pipeline
    roles: Roles
    meter: Meter
    optimizers: dict[str, RoleOptimizer] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)

    def parts(self) -> list[Part]:
        """Weights, copies, moments and average."""
        own = self._own()
        weights = [Part(f"{name}: weights", size, self._sliced(name)) for name, size in own.items() if size]
        published = self._published()
        copies = self.meter.level - sum(own.values()) - sum(part.bytes for part in published)
        held = [*self._teacher(), *weights, *published]
        held += [Part("copies that layers compute with", copies)] if copies > SMALL else []
        moments = {name: self._moments(name) for name in roles_of(self.stage.objective) if self.roles.parameters(name)}
        held += self._staying(moments)
        train = self.stage.train
        if train.ema is not None and train.ema_device == "auto":
            self._average = EMA(self.roles["generator"], decay=train.ema)
            size = bytes_of(self._average.averages.values())
            held.append(Part("generator: average", size, self._sliced("generator")))
        if train.sharding != "none":
            together = max(map(bytes_together, networks_of(self.roles)))
            held.append(Part("blocks brought together", together))
        return held

    def shared_by(self, turn: Turn) -> int:
        """Bytes of the turn's gradients that processes share where networks lie in slices."""
        return sum(self.optimizers[role].gradients for role in turn if role in self.optimizers and self._sliced(role))

    def while_encoding(self) -> int:
        """Bytes before the first stage, all text encoders beside the teacher's network, which is whole then."""
        pipe, low = self.pipeline.pipe, self.config.memory == "low"
        if pipe is None or not (encoders := encoders_of(pipe)):
            return 0
        codec = None if low else self._codec()
        return sum(map(module_bytes, encoders)) + self._network() + (module_bytes(codec) if codec else 0)

    def _network(self) -> int:
        """Bytes of the teacher's network."""
        network = self.pipeline.network
        size = bytes_with_swap(network) if self.config.swaps else module_bytes(network)
        share = QUANTISED.get(base_of(self.config), 1) if self.config.sharing == "lora" else 1
        return int(size * share)

    def _codec(self) -> nn.Module | None:
        codec = None if self.pipeline.pipe is None else autoencoder_of(self.pipeline.pipe)
        return codec if isinstance(codec, nn.Module) else None

    def _teacher(self) -> Iterator[Part]:
        yield Part("teacher's network", self._network(), sliced=True)
        needs = self.stage.objective.needs
        asleep = self.config.memory == "low" and not needs.pictures
        codec = self._codec()
        if codec is not None and not asleep:
            yield Part("codec", module_bytes(codec))

    def _own(self) -> dict[str, int]:
        """Bytes of what each role has of its own, the bits beside split weights too."""
        lent, found = set(map(id, self.pipeline.network.parameters())), {}
        for name in self.roles.members:
            own = [p for p in self.roles.parameters(name) if id(p) not in lent]
            found[name] = bytes_of([*own, *(low for p in own if (low := low_of(p)) is not None)])
        return found

    def _published(self) -> list[Part]:
        """What sees, scores or compares samples beside the roles' own networks."""
        roles = ((name, role) for name, role in self.roles.members.items() if isinstance(role, Published))
        return [
            Part(f"{name}: {what}", module_bytes(network))
            for name, role in roles
            for what, network in role.published.items()
        ]

    def _staying(self, moments: Mapping[str, int]) -> list[Part]:
        """Moments of every role, or where idle ones are in main memory, of those of the turn that has most."""
        if self.config.memory != "low":
            return [Part(f"{name}: moments", size, self._sliced(name)) for name, size in moments.items()]
        acting = {turn: sum(moments.get(role, 0) for role in turn) for turn in self.stage.objective.cycle}
        turn = max(acting, key=acting.__getitem__)
        return [Part(f"{'+'.join(turn)}: moments", acting[turn])]

    def _moments(self, role: str) -> int:
        """An optimizer's states, which its first step makes; the second one tells what a step computes with."""
        optimizer = RoleOptimizer(self.roles.trained(role), self.stage.train.optim_of(role), total=2)
        blocked, peak = torch.zeros((), device=NOWHERE), self.meter.peak
        self._step(optimizer, blocked)
        self.optimizers[role], self.updates[role] = optimizer, self._step(optimizer, blocked)
        self.meter.peak = peak
        return bytes_of([value for state in optimizer.optimizer.state.values() for value in state.values()])

    def _step(self, optimizer: RoleOptimizer, blocked: torch.Tensor) -> int:
        for parameter in optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        with self.meter.measured() as seen:
            optimizer.clip()
            optimizer.step(blocked=blocked)
        optimizer.zero_grad()
        return seen.peak

    def _sliced(self, role: str) -> bool:
        return all(id(p) in self._in_slices for p in self.roles[role].parameters())

    @cached_property
    def _in_slices(self) -> set[int]:
        """Parameters that processes would share."""
        networks = networks_of(self.roles)
        whole = {id(p) for swapped in networks.values() for p in swapped}
        return {id(p) for net in networks for p in net.parameters()} - whole
