"""A trainable toy network on every process, for the consistency family's side of `tests/checks/official`."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from closed_forms import ScriptedBatch, streams
from official import Denoising
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.state import STATES
from fastgen.models.walk import Plan
from fastgen.objectives import Objective
from fastgen.process import Discrete, Prediction, Process, Row, even_grid

SHAPE = (6, 3, 4, 4)
ELEMENTS = math.prod(SHAPE[1:])
WEIGHTS = {
    "generator": [0.9, 0.3, -0.4, 0.2],
    "real_score": [0.8, -0.2, 0.5, 0.1],
    "target": [0.7, 0.25, -0.3, 0.15],
}
NULL = torch.tensor([0.6, -0.1, 0.4, 0.0], dtype=torch.float64)
Scale = Callable[[Tensor], Tensor]
"""What the input is multiplied by at sigma / alpha [B]."""


def wave(rate: float, phase: float, size: float) -> Tensor:
    n = torch.arange(math.prod(SHAPE), dtype=torch.float64)
    return (size * torch.sin(rate * n + phase)).reshape(SHAPE)


DATA, NOISE, FRESH, OTHER = wave(0.7, 0.3, 0.8), wave(1.3, 0.8, 1.4), wave(2.1, 0.1, 1.4), wave(0.9, 1.1, 1.4)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
STABLE_DIFFUSION = Discrete((1 - BETAS).cumprod(0))


def real(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def level(process: Process, t: Tensor) -> Tensor:
    return process.sigma(t) / process.alpha(t)


def edm_scale(sigma: Tensor) -> Tensor:
    return (sigma**2 + 0.25).rsqrt()


class Toy(Denoising):
    """With u = tanh(log(sigma / alpha) / 4) its output of four weights, in the parameterisation `row`, is

    a tanh(x + u) + b roll(x) cos(u) + c sin(2 x) + d u

    and told the end s of a jump, (1 + 0.6 (t - s)) as much.
    """

    scalars = ("s",)

    def __init__(self, process: Process, role: str, row: Row, scale: Scale) -> None:
        super().__init__()
        self.process, self.row, self.scale = process, row, scale
        self.weights = nn.Parameter(real(WEIGHTS[role]))

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        sigma, null = level(self.process, t), cond.batched["null"][:, None]
        a, b, c, d = torch.where(null > 0, NULL, self.weights).T[..., None, None, None]
        x, u = x_t * self.scale(sigma).reshape(-1, 1, 1, 1), torch.tanh(0.25 * sigma.log()).reshape(-1, 1, 1, 1)
        output = a * torch.tanh(x + u) + b * torch.roll(x, 1, dims=-1) * torch.cos(u) + c * torch.sin(2 * x) + d * u
        if scalars:
            output = output * (1 + 0.6 * (t - scalars["s"])).reshape(-1, 1, 1, 1)
        return Prediction.solve(self.process, x_t, t, output, row=self.row)


class LinearJudge(nn.Module):
    """2.5 times the mean, and 0.8 sigma / alpha times the first five elements."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        flat = x_t.flatten(1)
        return (2.5 * flat.mean(dim=1) + 0.8 * level(self.process, t) * flat[:, :5].sum(dim=1))[:, None]


def toys(
    objective: Objective,
    process: Process,
    *,
    row: Row,
    teacher: Row | None = None,
    scale: Scale = torch.ones_like,
    steps: int = 1,
) -> Roles:
    """Generator, target and teacher, a judge, and the objective's states."""
    members: dict[str, nn.Module] = {
        name: Toy(process, name, (teacher or row) if name == "real_score" else row, scale) for name in WEIGHTS
    }
    members["discriminator"] = LinearJudge(process)
    members |= {name: STATES[name]().double() for name in objective.needs.states}
    return Roles(members, Plan([even_grid(steps)]))


def waves(*noises: Tensor, images: int = 0) -> ScriptedBatch:
    """The samples, with these noises in turn; the target network has moved already."""
    size = len(DATA)
    cond = Conditioning(size, {"null": torch.zeros(size)}, null=Conditioning(size, {"null": torch.ones(size)}))
    batch = ScriptedBatch(cond, SHAPE[1:], **streams(), real=DATA, script=list(noises))
    batch.images, batch.part = images, 1
    return batch


def slope(objective: Objective, roles: Roles, batch: ScriptedBatch, term: str) -> Tensor:
    """The gradient of a term of the generator's turn by its four weights."""
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch)[term]
        (found,) = torch.autograd.grad(loss, roles["generator"].weights)
    return found
