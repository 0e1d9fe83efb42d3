"""Solvers of the probability flow against exact flow maps, fixtures and Diffusers."""

from collections.abc import Callable

import pytest
import torch
from closed_forms import PLANE, REAL, close, processes
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from solver_orders import ORDERS, TwoGaussians, check_guided_field, check_order, check_stochastic, full, noisy
from torch import Tensor

from fastgen.objectives import Needs
from fastgen.objectives.parts.solvers import Field, Guidance, ddim, dpm2m, heun, landing_on, stochastic
from fastgen.process import EDM, Discrete, Flow, Process, Trig
from fastgen.proofs.analytic import ExactDenoiser, Mixture


@processes
@pytest.mark.parametrize("name", ORDERS)
def test_solvers_converge_at_their_order(name: str, process: Process):
    check_order(name, process)


LINE = Mixture(torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[[0.09]]], dtype=torch.float64))


def step(process: Process, solve: Callable[..., Tensor], x: float, t: float, s: float) -> float:
    """One step for N(0.7, 0.3^2), between two clocks."""
    times = [process.from_clock(torch.tensor([u], dtype=torch.float64)) for u in (t, s)]
    start = torch.tensor([[x]], dtype=torch.float64)
    return solve(Field(ExactDenoiser(process, LINE), LINE.uncond(1)), start, *times).item()


@pytest.mark.parametrize(
    ("process", "solve", "x", "t", "s", "expected"),
    [
        (EDM(), heun, 3.0, 2.0, 0.5, 1.480422119948224),
        (EDM(), ddim, 3.0, 2.0, 0.5, 1.312958435207824),
        (Flow(), ddim, 1.3, 0.8, 0.2, 1.3 - 0.6 * 0.709446861404599),
        (EDM(), ddim, 3.0, 2.0, 0.0, 0.750611246943765),
    ],
)
def test_single_steps_by_hand(process: Process, solve: Callable, x: float, t: float, s: float, expected: float):
    assert step(process, solve, x, t, s) == pytest.approx(expected, rel=1e-12)


def test_the_variance_preserving_step_is_ddim():
    """alpha_t = 0.6 to alpha_s = 0.9 from x = 1.1."""
    process = Trig()
    t, s = (torch.acos(torch.tensor(alpha, dtype=torch.float64)).item() for alpha in (0.6, 0.9))
    assert step(process, ddim, 1.1, t, s) == pytest.approx(1.031802650994367, rel=1e-12)


@pytest.mark.parametrize("steps", [4, 10])
def test_dpm_solver_is_that_of_diffusers(steps: int):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    process = Discrete(DDIMScheduler(**config).alphas_cumprod)
    exact, cond = ExactDenoiser(process, PLANE), PLANE.uncond(32)
    scheduler = DPMSolverMultistepScheduler(**config, timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    start = torch.randn(32, 2, dtype=torch.float64)
    x = start
    for timestep in scheduler.timesteps:
        t = process.from_clock(timestep.double().expand(32))
        x = scheduler.step(exact(x, t, cond).eps, timestep, x).prev_sample
    close(dpm2m(Field(exact, cond), start, full(1.0), full(0.0), substeps=steps), x, tolerance=2e-4)


@processes
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_stochastic_steps_have_the_posterior_spread(process: Process, eta: float):
    check_stochastic(process, eta)


def test_ancestral_sampling_ends_in_the_distribution():
    process, count = Flow(), 4000
    t, s = full(0.8, count), full(0.05, count)
    field, rng = Field(ExactDenoiser(process, REAL), REAL.uncond(count)), torch.Generator().manual_seed(1)
    found = stochastic(field, noisy(process, t), t, s, eta=1.0, rng=rng, substeps=40)
    wanted = 0.95**2 * REAL.covariances[0] + 0.05**2 * torch.eye(2, dtype=torch.float64)
    close(torch.cov(found.T), wanted, tolerance=0.06)


@processes
def test_a_guided_field_is_that_of_the_shifted_gaussian(process: Process):
    check_guided_field(process)


def test_no_graph_is_kept():
    model = TwoGaussians(Flow())
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    field = Field(model, PLANE.cond(torch.zeros(3, dtype=torch.long)), torch.tensor([2.0, 3.0, 4.0]))
    assert not field(x, full(0.5, 3)).x0.requires_grad


@processes
def test_a_landing_is_met_from_both_ends(process: Process):
    t, s = full(0.7), full(0.2)
    x_t, x_s = torch.randn(2, 32, 2, dtype=torch.float64)
    found = landing_on(process, x_t, t, x_s, s)
    close(found.at(t), x_t)
    close(found.at(s), x_s)
    if isinstance(process, Flow):
        close(found.velocity, (x_t - x_s) / 0.5)


@pytest.mark.parametrize("bounds", [(3.0, 2.0), (-1.0, 2.0), (1.0, 30.0)])
def test_impossible_guidance_is_refused(bounds: tuple[float, float]):
    with pytest.raises(ValueError, match="need 0 <= low <= high <= 20"):
        Guidance(*bounds)


def test_guidance_names_what_it_reads():
    assert Guidance().needs() == Needs()
    assert Guidance(2.0, 2.0).needs() == Needs(null=True)
    both = Needs(null=True, target=True, scalars={"generator": {"w"}, "target": {"w"}})
    assert Guidance(2.0, 8.0, told=True).needs(target=True) == both
