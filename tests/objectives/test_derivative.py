"""Derivatives along trajectories: exact and by finite differences, on exact denoisers and on networks."""

import logging
from collections.abc import Callable

import pytest
import tiny
import torch
from closed_forms import PLANE, PROCESSES, REAL, close, processes
from derivatives import METHODS, check_rate, full
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.objectives.parts import derivative
from fastgen.objectives.parts.derivative import Derivative, along, finite_differences, forward_mode
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.process import Flow, Prediction, Process, from_scheduler
from fastgen.proofs.toy import toy_denoiser


@processes
@pytest.mark.parametrize("method", METHODS)
def test_the_rate_of_an_exact_denoiser(process: Process, method: str):
    check_rate(process, method)


def unet() -> tuple[NetworkDenoiser, Tensor, Conditioning]:
    model = NetworkDenoiser(tiny.unet().double(), from_scheduler(DDIMScheduler()), CallForm())
    return model, torch.randn(2, 3, 8, 8, dtype=torch.float64), Conditioning(2)


def sana() -> tuple[NetworkDenoiser, Tensor, Conditioning]:
    torch.manual_seed(0)
    net = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=4,
        patch_size=1,
    )
    reading = from_scheduler(FlowMatchEulerDiscreteScheduler())
    model = NetworkDenoiser(net.double(), reading, CallForm(sample="hidden_states"))
    cond = Conditioning(2, {"encoder_hidden_states": torch.randn(2, 3, 8, dtype=torch.float64)})
    return model, torch.randn(2, 4, 4, 4, dtype=torch.float64), cond


def rates(model: NetworkDenoiser, x: Tensor, cond: Conditioning) -> list[Tensor]:
    def curve(x: Tensor, clock: Tensor) -> Tensor:
        return model(x, model.process.from_clock(clock), cond).x0

    process, t = model.process, full(0.5, len(x))
    unit = torch.full_like(t, 500.0) if process.clock(t)[0] > 100 else torch.ones_like(t)
    dx = torch.randn_like(x) / unit[0]
    return [method(curve, process, x, t, dx, unit).rate for method in (forward_mode, finite_differences)]


@pytest.mark.parametrize("build", [unet, sana])
def test_both_agree_on_networks(build: Callable):
    """The networks' own timesteps are fp32 and enter a thousandfold, which bounds the differences' precision."""
    model, x, cond = build()
    exact, near = rates(model, x, cond)
    assert exact.norm() > 1e-8
    assert ((exact - near).norm() / exact.norm()).item() < 0.05


def test_both_agree_on_a_network_of_another_process():
    """A variance-preserving network spoken to as a flow: the change of its own time is part of the derivative."""
    model = RetargetedDenoiser(toy_denoiser(PROCESSES["vp"], PLANE), Flow())
    exact, near = rates(model, torch.randn(8, 2), PLANE.uncond(8))
    assert ((exact - near).norm() / exact.norm()).item() < 0.02


class Cube(torch.autograd.Function):
    """x^3, whose author wrote no forward derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise NotImplementedError


class Cubic(nn.Module):
    """x0 = x^3 t, with or without forward derivative; forward passes are counted."""

    scalars: tuple[str, ...] = ()

    def __init__(self, power: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.process, self.power, self.calls = Flow(), power, 0

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: object = None) -> Prediction:
        self.calls += 1
        return Prediction.of_x0(self.process, x_t, t, self.power(x_t) * t[:, None])

    def guide(self, *given: object) -> Prediction:
        raise ValueError("it has no guidance")

    def tap(self, *given: object) -> list[Tensor]:
        raise ValueError("it has no layers")


POINT = torch.tensor([[2.0, -1.0]], dtype=torch.float64)


def derived(model: Cubic, x: Tensor = POINT, *, step: float | None = None) -> Derivative:
    def curve(x: Tensor, clock: Tensor) -> Tensor:
        return model(x, clock, REAL.uncond(1)).x0

    return along(model, curve, x, full(0.5, 1), torch.ones_like(x), step=step)


@pytest.mark.parametrize(
    ("power", "message", "calls"),
    [(lambda x: x**3, "by forward mode", 1), (Cube.apply, "by finite differences", 3)],
)
def test_the_way_is_chosen_once_and_said(power: Callable, message: str, calls: int, caplog: pytest.LogCaptureFixture):
    model = Cubic(power)
    with caplog.at_level(logging.INFO, logger=derivative.__name__):
        for _ in range(2):
            model.calls = 0
            found = derived(model)
    assert [message in record.message for record in caplog.records] == [True]
    assert model.calls == calls
    close(found.rate, torch.tensor([[12 * 0.5 + 8, 3 * 0.5 - 1]], dtype=torch.float64))
    assert not found.rate.requires_grad


def test_at_the_end_of_time_differences_are_one_sided():
    model, seen = Cubic(lambda x: x**3), []

    def curve(x: Tensor, clock: Tensor) -> Tensor:
        seen.append(clock)
        return model(x, clock, REAL.uncond(1)).x0

    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    found = finite_differences(curve, Flow(), x, full(1.0, 1), torch.ones_like(x), full(1.0, 1))
    assert torch.cat(seen).max() == 1
    close(found.rate, torch.tensor([[12.0 + 8, 3.0 - 1]], dtype=torch.float64), tolerance=2e-3)


def check_mean_over_a_step() -> None:
    """(x + d)^3 (1/2 + d) has the odd part 3 x^2 / 2 + x^3 + d^2 (1/2 + 3 x), by d."""
    found = derived(Cubic(lambda x: x**3), step=0.2)
    close(found.rate, torch.tensor([[6 + 8 + 0.04 * 6.5, 1.5 - 1 + 0.04 * -2.5]], dtype=torch.float64))


def test_a_given_step_is_averaged_over(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger=derivative.__name__):
        check_mean_over_a_step()
    assert not caplog.records


class Coarse(Cube):
    """Rounded to bf16."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x**3).bfloat16().to(x)


def test_differences_that_are_lost_in_rounding_are_refused():
    x = torch.linspace(1, 2, 200)[None]
    with pytest.raises(UserError, match=r"lost in rounding .*derivative_step=0\.03"):
        derived(Cubic(Coarse.apply), x)
    close(derived(Cubic(Coarse.apply), x, step=0.2).rate, 1.5 * x**2 + x**3, tolerance=0.2)


@pytest.mark.parametrize("objective", [MeanFlow, SimplifiedConsistency, SanaSprint])
@pytest.mark.parametrize("step", [0.0, -0.1, 1.0])
def test_a_step_that_is_none_is_refused(objective: Callable, step: float):
    with pytest.raises(ValueError, match="derivative_step"):
        objective(derivative_step=step)
