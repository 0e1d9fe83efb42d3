"""A network of one process spoken to in another."""

import pytest
import torch
from torch import Tensor, nn
from towers import NOTHING, PLANE, PROCESSES, VP, T, Tower, network

from fastgen.models.conditioning import Conditioning
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.process import Discrete, Flow
from fastgen.proofs.analytic import ExactDenoiser, Mixture


class ExactNetwork(nn.Module):
    """The optimal eps network of a mixture, called with a step index."""

    def __init__(self, process: Discrete, data: Mixture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.exact = ExactDenoiser(process, data)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        t = self.exact.process.from_clock(timestep)
        return self.exact(sample, t, Conditioning(len(sample), {"class_labels": class_labels})).eps


@pytest.mark.parametrize("name", ["flow", "trig", "edm"])
def test_a_ddpm_network_spoken_to_in_another_process_is_exact(name: str):
    process = PROCESSES[name]
    inner = network(ExactNetwork(VP, PLANE))
    t = torch.linspace(0.4, 0.7, 8, dtype=torch.float64)
    x0, eps = torch.randn(2, 8, 2, dtype=torch.float64)
    x_t = process.renoise(x0, t, eps)
    cond = PLANE.cond(torch.arange(8) % 2)
    ours, exact = (
        RetargetedDenoiser(inner, process)(x_t, t, cond),
        ExactDenoiser(process, PLANE)(x_t, t, cond),
    )
    torch.testing.assert_close(ours.x0, exact.x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eps, exact.eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.at(t), x_t, rtol=1e-5, atol=1e-5)


def test_equal_noise_levels_give_equal_beliefs():
    flow, inner = Flow(), network(Tower())
    x0, eps = torch.randn(2, 3, 4)
    seen = flow.retarget(VP, T)
    ours = RetargetedDenoiser(inner, flow)(flow.renoise(x0, T, eps), T, NOTHING)
    theirs = inner(VP.renoise(x0, seen.t, eps), seen.t, NOTHING)
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-4, atol=1e-4)
    features = (
        RetargetedDenoiser(inner, flow).tap(flow.renoise(x0, T, eps), T, NOTHING, ["layers.1"]),
        inner.tap(VP.renoise(x0, seen.t, eps), seen.t, NOTHING, ["layers.1"]),
    )
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)
