"""Solvers of the probability flow against exact flow maps, fixtures and Diffusers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from closed_forms import PLANE, REAL, believed, close, processes
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from flow_maps import mapped
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.objectives import Needs
from fastgen.objectives.parts.solvers import Field, Guidance, ddim, dpm2m, heun, landing_on, stochastic
from fastgen.process import EDM, Discrete, Flow, Prediction, Process, Trig
from fastgen.proofs.analytic import ExactDenoiser, Mixture

ORDERS = {"ddim": (ddim, 1), "heun": (heun, 2), "dpm2m": (dpm2m, 2)}


def full(t: float, count: int = 32) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def noisy(process: Process, t: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return process.renoise(REAL.sample(len(t), rng), t, torch.randn(len(t), 2, generator=rng, dtype=torch.float64))


def check_order(name: str, process: Process) -> None:
    """Half the step, 2^-order of the error."""
    solve, order = ORDERS[name]
    t, s = full(0.85), full(0.35)
    x, field = noisy(process, t), Field(ExactDenoiser(process, REAL), REAL.uncond(32))
    errors = [(solve(field, x, t, s, substeps=n) - mapped(process, x, t, s)).norm() for n in (40, 80)]
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(order, abs=0.2)
    assert errors[1] < 0.5


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


def check_stochastic(process: Process, eta: float) -> None:
    """The affine law of one step: mean alpha_s D + sqrt(sigma_s^2 - eta^2 q^2) e, deviation eta q."""
    count = 40_000
    t, s = full(0.7, count), full(0.4, count)
    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64).expand(count, 2)
    field, rng = Field(ExactDenoiser(process, REAL), REAL.uncond(count)), torch.Generator().manual_seed(0)
    found = stochastic(field, x, t, s, eta=eta, rng=rng)
    here = field.model(x[:1], t[:1], REAL.uncond(1))
    (a, b), (c, d) = ((process.alpha(u)[0], process.sigma(u)[0]) for u in (t, s))
    q = ((d / b) ** 2 * (b**2 - (a / c * d) ** 2)).sqrt()
    mean = c * here.x0 + (d**2 - (eta * q) ** 2).sqrt() * here.eps
    close(found.mean(dim=0), mean[0], tolerance=0.02 * max(1.0, float(q)))
    close(found.std(dim=0), (eta * q).expand(2), tolerance=0.02)


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


class TwoGaussians(nn.Module):
    """Given class 0 N((1, 0), S), unconditionally N((-0.5, 0.4), S): under guidance exactly N(m_w, S)."""

    scalars: tuple[str, ...] = ()

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def mean(self, labels: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0], [-0.5, 0.4]], dtype=torch.float64)[-labels]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: object = None) -> Prediction:
        shift = self.mean(cond.batched["class_labels"]) - REAL.means
        moved = ExactDenoiser(self.process, REAL)(x_t - self.process.alpha(t)[:, None] * shift, t, REAL.uncond(len(t)))
        return Prediction(self.process, t, moved.x0 + shift, moved.eps)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return null.lerp(cond, w)

    def tap(self, x_t: Tensor, t: Tensor, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise ValueError("it has no layers")


def check_guided_field(process: Process) -> None:
    """w = 1, 3.4 and 7 row by row: the belief of N(m_w, S), m_w = m_null + w (m_c - m_null)."""
    model, w = TwoGaussians(process), torch.tensor([1.0, 3.4, 7.0], dtype=torch.float64)
    cond, t = PLANE.cond(torch.zeros(3, dtype=torch.long)), full(0.6, 3)
    x = noisy(process, t)
    means = torch.tensor([[1.0, 0.0], [4.6, -0.96], [10.0, -2.4]], dtype=torch.float64)
    alpha, sigma = process.alpha(t[:1])[0], process.sigma(t[:1])[0]
    expected = [believed(mean, REAL.covariances[0], x[i : i + 1], alpha, sigma) for i, mean in enumerate(means)]
    close(Field(model, cond, w)(x, t).x0, torch.cat(expected))
    one = Field(model, cond.index(torch.tensor([1])), 3.4)(x[1:2], t[1:2])
    close(one.x0, expected[1])


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
