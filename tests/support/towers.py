"""Small networks that say what they are told to say, and that remember how they were called."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.process import EDM, ROWS, Flow, Process, Reading, Trig, from_scheduler
from fastgen.proofs.analytic import Mixture

VP = from_scheduler(DDIMScheduler()).process
PROCESSES: dict[str, Process] = {"vp": VP, "flow": Flow(), "edm": EDM(), "trig": Trig()}
NOTHING = Conditioning(3)
T = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
PLANE = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 1.0]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]]),
    labels=torch.tensor([0, 1]),
)


class Answer(nn.Module):
    """Says what it is told to say and remembers the question."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def forward(self, **told: object) -> object:
        self.told = told
        return self.answer


class Tower(nn.Module):
    """Four layers that run in `order`; `calls` lists which ones ran."""

    def __init__(self, width: int = 4, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.order = order
        self.calls: list[int] = []

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = sample
        for i in self.order:
            self.calls.append(i)
            h = torch.tanh(self.layers[i](h)) + timestep[:, None].to(h.dtype) / 1000
        return h


def network(net: nn.Module, process: Process = VP, row: str = "eps", **form: object) -> NetworkDenoiser:
    reading = Reading(process, ROWS[row], process.clock, process.from_clock)
    return NetworkDenoiser(net, reading, CallForm(**form))
