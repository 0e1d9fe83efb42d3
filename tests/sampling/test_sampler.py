"""The two samplers against exact denoisers: the flow map, the law of the data, and one seed per sample."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastgen.models.conditioning import Conditioning
from fastgen.process import EDM, Flow, Prediction, Process, Trig, even_grid, from_scheduler
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture
from fastgen.sampling.sampler import ode, renoise, seeded_noise

VP = from_scheduler(DDIMScheduler()).process
PROCESSES: dict[str, Process] = {"vp": VP, "flow": Flow(), "edm": EDM(sigma_max=20.0), "trig": Trig()}
BLOB = Mixture(torch.tensor([[1.0, -0.5]]), torch.tensor([[[0.5, 0.3], [0.3, 0.4]]]))
PAIR = Mixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.eye(2).expand(2, 2, 2) * 0.2, labels=torch.tensor([0, 1]))
CPU = torch.device("cpu")
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def noise(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64)


def at(t: float, count: int) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


class FlowMap(ExactDenoiser):
    """The perfect one-step generator: carries x_t along the probability flow to clean data."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, _scalars: object = None) -> Prediction:
        return Prediction.of_x0(self.process, x_t, t, self.flow_map(x_t, t, torch.zeros_like(t), cond))


class Ones(ExactDenoiser):
    """Believes that every sample is one, and remembers what it was shown."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, _scalars: object = None) -> Prediction:
        self.seen = [*getattr(self, "seen", []), x_t]
        return Prediction.of_x0(self.process, x_t, t, torch.ones_like(x_t))


@every_process
def test_the_ode_converges_to_the_flow_map_with_order_one(process: Process):
    eps = noise(16)
    model, cond = ExactDenoiser(process, BLOB), BLOB.uncond(16)
    truth = model.flow_map(process.prior(eps, at(1.0, 16)), at(1.0, 16), at(0.0, 16), cond)
    errors = [float((ode(model, eps, cond, even_grid(n).tolist()) - truth).abs().max()) for n in (64, 128, 256)]
    assert errors[-1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


@every_process
def test_the_last_step_lands_on_the_predicted_clean_sample(process: Process):
    eps, cond, model = noise(4), BLOB.uncond(4), ExactDenoiser(process, BLOB)
    alone = model(process.prior(eps, at(0.7, 4)), at(0.7, 4), cond)
    torch.testing.assert_close(ode(model, eps, cond, [0.7]), alone.x0)
    after = model(alone.at(at(0.3, 4)), at(0.3, 4), cond)
    torch.testing.assert_close(ode(model, eps, cond, [0.7, 0.3]), after.x0)


@every_process
def test_renoising_a_perfect_generator_keeps_the_law(process: Process):
    model, count = FlowMap(process, BLOB), 20_000
    x0 = renoise(model, lambda: noise(count), BLOB.uncond(count), [1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(x0.mean(0), BLOB.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(x0.T.cov(), BLOB.covariances[0], rtol=0, atol=0.03)


@every_process
def test_one_step_of_an_affine_generator_is_its_affine_map(process: Process):
    mean, factor = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, 0.0], [0.2, 0.1]])
    eps = noise(5)
    x0 = renoise(AffineGenerator(process, mean, factor), lambda: eps, BLOB.uncond(5), [0.8])
    torch.testing.assert_close(x0, mean + eps @ factor.double().T)


def test_renoising_draws_fresh_noise_for_each_time_in_order():
    draws = list(noise(9).split(3))
    waiting, model = iter(draws), Ones(Flow(), BLOB)
    renoise(model, lambda: next(waiting), BLOB.uncond(3), [0.9, 0.6, 0.3])
    expected = [draws[0], 0.4 + 0.6 * draws[1], 0.7 + 0.3 * draws[2]]
    torch.testing.assert_close(torch.stack(model.seen), torch.stack(expected))
    assert next(waiting, None) is None


@every_process
def test_guidance_moves_along_the_difference_to_the_null_prediction(process: Process):
    model, eps, labels = ExactDenoiser(process, PAIR), noise(4), torch.tensor([0, 1, 0, 1])
    cond = PAIR.cond(labels)
    told, nothing, twice = (
        ode(model, eps, given, [0.7], guidance=w) for given, w in ((cond, 1.0), (cond.unconditional, 1.0), (cond, 2.0))
    )
    torch.testing.assert_close(twice, 2 * told - nothing)
    assert not torch.allclose(twice, told, atol=0.01)


def test_samplers_store_no_graph():
    generator = AffineGenerator(VP, torch.zeros(2), torch.eye(2))
    assert not renoise(generator, lambda: noise(2), BLOB.uncond(2), [1.0, 0.5]).requires_grad
    assert not ode(generator, noise(2), BLOB.uncond(2), [1.0, 0.5]).requires_grad


def test_a_sample_depends_on_its_seed_and_not_on_its_batch():
    model, times = FlowMap(Flow(), BLOB), [1.0, 0.5, 0.25]
    alone = renoise(model, seeded_noise([7], (2,), CPU), BLOB.uncond(1), times)
    among = renoise(model, seeded_noise([3, 7, 5], (2,), CPU), BLOB.uncond(3), times)
    torch.testing.assert_close(among[1:2], alone)
    assert not torch.allclose(among[0], alone[0], atol=1e-3)


def test_seeded_noise_is_what_a_stock_pipeline_draws_from_its_generators():
    draw = seeded_noise((0, 1, 2), (3, 4, 4), CPU)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2)]
    stock = [randn_tensor((3, 3, 4, 4), generator=generators) for _ in range(2)]
    assert torch.equal(draw(), stock[0])
    assert torch.equal(draw(), stock[1])
    assert not torch.equal(stock[0], stock[1])
