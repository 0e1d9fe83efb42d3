"""What the tests against official code share: toy networks that both sides call, and numbers of the other side.

A file of `tests/checks/official/` holds what the official code of that commit made of these networks and inputs:
run, or, where it could not be run alone, evaluated by its formula. It holds numbers, never code. Arrays are flat.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from closed_forms import ScriptedBatch, streams
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.process import ROWS, Prediction, Process, Uniform

FOLDER = Path(__file__).parent / "official"
SHAPE = (3, 3, 2, 2)
VALUES = 12
"""Of one sample."""

_K = torch.arange(36, dtype=torch.float64)
X0 = (0.9 * torch.sin(1.3 * _K + 0.3)).reshape(SHAPE)
EPS = (1.2 * torch.cos(2.1 * _K + 0.7)).reshape(SHAPE)
OTHER = (1.1 * torch.sin(0.7 * _K + 1.9)).reshape(SHAPE)
REAL = (0.8 * torch.sin(0.9 * _K + 2.0)).reshape(SHAPE)
COND = Conditioning(3, {"null": torch.zeros(3)}, null=Conditioning(3, {"null": torch.ones(3)}))

WEIGHTS = {"real": ((0.8, 0.1), (0.6, 0.3)), "fake": ((0.7, -0.2), (0.5, -0.4))}
"""a and b of each role with its condition and without."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity of ours is `factor` times the official one.

    Args:
        name: of the file: the objective's, "dmd2_on_edm" for one of its forms.
        quantity: in the file; "generator.1.2" is entry "1.2" of "generator".
        what: the quantity in words.
        factor: and in words, where it is made of the batch's B samples and their d values.
        ours: computes it, flat or a list of such.
        tolerance: relative; the official code adds about as much to a divisor, or computes in fp32.
    """

    name: str
    quantity: str
    what: str
    factor: float
    words: str
    ours: Callable[[dict[str, Any]], Tensor]
    tolerance: float = 1e-9

    @property
    def id(self) -> str:
        return f"{self.name}, {self.what}"


def theirs(name: str) -> dict[str, Any]:
    """The official side's file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def check(row: Row) -> None:
    """Holds our side to the factor, to the tolerance of the quantity's largest value."""
    file = theirs(row.name)
    key, _, entry = row.quantity.partition(".")
    official = torch.tensor(file[key][entry] if entry else file[key], dtype=torch.float64)
    assert official.abs().max() > 0
    atol = row.tolerance * row.factor * float(official.abs().max())
    torch.testing.assert_close(row.ours(file).flatten().double(), row.factor * official, rtol=0, atol=atol)


def table(rows: list[Row]) -> str:
    """The rows as they stand in docs/objectives.md."""
    lines = ["| objective | official code | compared | factor |", "|---|---|---|---|"]
    for row in rows:
        file = theirs(row.name)
        source = (
            f"{file['repository']} `{Path(file['file']).name}` at {file['commit'][:7]}, {file['how'].partition(',')[0]}"
        )
        lines.append(f"| `{row.name.partition('_on_')[0]}` | {source} | {row.what} | {row.words} |")
    return "\n".join(lines)


class Denoising(nn.Module):
    """The rest of what a denoiser is asked for."""

    scalars: tuple[str, ...] = ()

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return null.lerp(cond, w)

    def tap(self, x_t: Tensor, t: Tensor, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise NotImplementedError


class Toy(Denoising):
    """A denoiser whose output is a tanh(x + b) + 0.3 x / (1 + level) + 0.1 mean(x) in a row's parameterisation."""

    def __init__(self, process: Process, role: str, *, row: str, level: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        told, null = WEIGHTS[role]
        self.process, self.row, self.level = process, row, level
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in told)
        self.null = null

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] = {}) -> Prediction:
        level = self.level(t).reshape(-1, 1, 1, 1)
        rest = 0.3 * x_t / (1 + level) + 0.1 * x_t.mean(dim=(1, 2, 3), keepdim=True)
        told, null = self.a * torch.tanh(x_t + self.b), self.null[0] * torch.tanh(x_t + self.null[1])
        output = torch.where(cond.batched["null"].reshape(-1, 1, 1, 1) > 0, null, told) + rest
        return Prediction.solve(self.process, x_t, t, output, row=ROWS[self.row])


class Student(Denoising):
    """A generator whose clean sample is its parameter."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.x0 = nn.Parameter(X0.clone())

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] = {}) -> Prediction:
        return Prediction(self.process, t, self.x0, OTHER)


class Judge(nn.Module):
    """Logits [B, 4]: c times the channels' mean of sin(1.5 x + 0.2), and 0.1 level / (1 + level)."""

    def __init__(self, level: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.level = level
        self.c = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        level = self.level(t).reshape(-1, 1)
        return self.c * torch.sin(1.5 * x_t + 0.2).mean(dim=1).flatten(1) + 0.1 * level / (1 + level)

    def ratio(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self(x_t, t, cond).mean(dim=1)


def at(times: Tensor) -> Uniform:
    """The time law of just these times [B]."""

    class At(Uniform):
        def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
            return times

    return At()


def trio(
    process: Process,
    *,
    row: str,
    level: Callable[[Tensor], Tensor],
    grid: tuple[float, ...] = (1.0,),
    **states: nn.Module,
) -> Roles:
    """A student, two toy scores and a judge."""
    members = {
        "generator": Student(process),
        "real_score": Toy(process, "real", row=row, level=level),
        "fake_score": Toy(process, "fake", row=row, level=level),
        "discriminator": Judge(level),
    }
    grids = [torch.tensor(grid, dtype=torch.float64)]
    return Roles(members | states, Plan(grids, "ode" if len(grid) > 1 else "renoise"))


def batch_of(*noises: Tensor, seed: int = 0) -> ScriptedBatch:
    """A batch whose noises are those, after one that the student does not look at."""
    return ScriptedBatch(COND, SHAPE[1:], **streams(seed), real=REAL, script=[EPS, *noises])
