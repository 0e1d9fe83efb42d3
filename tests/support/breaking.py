"""Objectives whose losses break down or spike in some calls."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from fastgen.objectives import DMD2, KnowledgeDistillation


@dataclass(frozen=True)
class Spoilt(KnowledgeDistillation):
    """kd whose loss is NaN, or whose gradient alone is infinite, in some calls."""

    cycles: tuple[int, ...] = ()
    gradient_only: bool = False
    calls: list[int] = field(default_factory=list)

    def generator(self, roles: Any, batch: Any) -> dict[str, torch.Tensor]:
        self.calls.append(len(self.calls))
        terms = super().generator(roles, batch)
        if self.calls[-1] not in self.cycles:
            return terms
        loss = terms["regression"]
        steep = loss + (loss - loss.detach()).sqrt()
        return {"regression": steep if self.gradient_only else loss * torch.nan}


@dataclass(frozen=True)
class Spiking(KnowledgeDistillation):
    """kd whose loss is a hundred times as large in some calls, on one of several ranks."""

    at: tuple[int, ...] = ()
    rank: str = "0"
    calls: list[int] = field(default_factory=list)

    def generator(self, roles: Any, batch: Any) -> dict[str, torch.Tensor]:
        self.calls.append(len(self.calls))
        here = self.calls[-1] in self.at and os.environ.get("RANK", "0") == self.rank
        return {name: value * (100.0 if here else 1.0) for name, value in super().generator(roles, batch).items()}


@dataclass(frozen=True)
class FakeOverflows(DMD2):
    """The discriminator's loss is infinite in the second fake turn."""

    turns: list[int] = field(default_factory=list)

    def fake_score(self, roles: Any, batch: Any) -> dict[str, torch.Tensor]:
        self.turns.append(1)
        terms = super().fake_score(roles, batch)
        return terms | {"gan": terms["gan"] * (torch.inf if len(self.turns) == 2 else 1.0)}
