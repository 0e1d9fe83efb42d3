"""A generator of two moments that remembers how it is called."""

from dataclasses import dataclass

import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN
from torch import Tensor, nn

from fastgen.models.calls import NONE, Scalars
from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.process import Prediction, Process
from fastgen.proofs.analytic import AffineGenerator


@dataclass(frozen=True)
class Call:
    x_t: Tensor
    t: Tensor
    cond: Conditioning
    x0: Tensor
    recorded_graph: bool


class Recorder(nn.Module):
    """A denoiser that remembers its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.process, self.scalars = inner, inner.process, inner.scalars
        self.guide, self.tap = inner.guide, inner.tap
        self.calls: list[Call] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Scalars = NONE) -> Prediction:
        prediction = self.inner(x_t, t, cond, scalars)
        self.calls.append(Call(x_t.detach(), t, cond, prediction.x0.detach(), torch.is_grad_enabled()))
        return prediction


def recorded_roles(process: Process, grids: list[Tensor]) -> tuple[Roles, Recorder]:
    recorder = Recorder(AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR))
    return Roles({"generator": recorder}, Plan(grids)), recorder


STOPS = torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=torch.float64)
