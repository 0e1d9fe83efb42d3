"""Objectives against closed forms, fixed points and finite differences; and wrong objectives, which must fail.

What matters most is written as `check_*` functions. They are run on the code as it is, and once more on code that was
made wrong on purpose (`MUTANTS`), where they have to raise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn.functional import sigmoid, softplus

from fastgen.analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture
from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.objectives import (
    OBJECTIVES,
    Batch,
    Landing,
    Objective,
    Pair,
    dmd,
    dmd2,
    kd,
    matching,
    pretrain,
    rollout,
)
from fastgen.objectives import vsd as vsd_module
from fastgen.objectives.dmd import DMD
from fastgen.objectives.dmd2 import DMD2
from fastgen.objectives.kd import KnowledgeDistillation
from fastgen.objectives.matching import compare
from fastgen.objectives.ops import guided, look, mean_abs, surrogate, through
from fastgen.objectives.pretrain import Pretrain
from fastgen.objectives.rollout import land, landed
from fastgen.objectives.vsd import VSD
from fastgen.process import EDM, Discrete, Flow, Prediction, Process, Trig, Uniform, even_grid
from fastgen.toy import toy_batch, toy_roles

PROCESSES: dict[str, Process] = {
    "vp": Discrete(DDIMScheduler().alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.8, 0.2], [0.2, 0.5]], dtype=torch.float64)
REAL = Mixture(MEAN[None], COVARIANCE[None])
OTHER_MEAN = torch.tensor([0.9, 0.1], dtype=torch.float64)
OTHER_FACTOR = torch.tensor([[1.1, 0.0], [-0.4, 0.7]], dtype=torch.float64)
PLANE = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 1.0], [-0.5, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.25, -0.2], [-0.2, 0.3]]]),
    labels=torch.tensor([0, 1, 1]),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tensors this small are slower on two threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class ScriptedBatch(Batch):
    """A batch whose noise is the next [B, d] of a given list."""

    script: list[Tensor] = field(default_factory=list)

    def noise(self) -> Tensor:
        return self.script.pop(0)


def streams(seed: int = 0) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("rng", "shared_rng"))}


def scripted(*script: Tensor, seed: int = 0, real: Tensor | None = None) -> ScriptedBatch:
    cond = REAL.uncond(len(script[0]))
    return ScriptedBatch(cond, tuple(script[0].shape[1:]), **streams(seed), real=real, script=list(script))


def cubature(dim: int) -> tuple[Tensor, Tensor]:
    """Two unit noises [4 dim, dim]; averages over the batch of what is quadratic in them are expectations."""
    axes = math.sqrt(2 * dim) * torch.eye(2 * dim, dtype=torch.float64)
    points = torch.cat([axes, -axes])
    return points[:, :dim], points[:, dim:]


def quasi_random(dim: int, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Two unit noises [count, dim] that fill space evenly."""
    u = torch.quasirandom.SobolEngine(2 * dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).chunk(2, dim=1)


def only(t: float) -> Uniform:
    """The time law that is t, to nine digits."""
    return Uniform(t - 1e-9, t)


def gaussian_roles(process: Process, **members: nn.Module) -> Roles:
    """An affine generator, the exact score of REAL and that of the generator's own law."""
    generator = AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR)
    trio = {
        "generator": generator,
        "fake_score": ExactDenoiser(process, generator.law()),
        "real_score": ExactDenoiser(process, REAL),
    }
    return Roles(trio | members, grids=[even_grid(1)])


def slopes(roles: Roles, objective: Objective, batch: Batch, term: str) -> tuple[Tensor, Tensor]:
    """Derivatives of a term of the generator's turn by the affine generator's mean [d] and factor [d, d]."""
    generator = roles["generator"]
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch)[term]
        assert loss.requires_grad, "the term does not reach the generator"
        mean, factor = torch.autograd.grad(loss, [generator.mean, generator.factor])
    return mean, factor


def believed(mean: Tensor, covariance: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x_t] of a Gaussian by plain linear algebra (independent of `fastgen.analytic`)."""
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    return mean + alpha * torch.linalg.solve(noisy, (x_t - alpha * mean).T).T @ covariance


def close(actual: object, expected: object, *, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Directions


def check_vsd_is_the_kl_gradient(process: Process, t: float) -> None:
    """alpha sigma (fake - real) is the KL gradient times sigma^3 / alpha (alpha^2 + sigma^2)."""
    z, eps = cubature(2)
    measured = slopes(gaussian_roles(process), VSD(guidance=1.0, times=only(t)), scripted(z, eps), "vsd")
    level = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = process.alpha(level), process.sigma(level)
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    unit = torch.eye(2, dtype=torch.float64)
    fake = torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + sigma**2 * unit)
    real = torch.distributions.MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * unit)
    kl = torch.autograd.grad(torch.distributions.kl_divergence(fake, real), [mean, factor])
    weight = sigma**3 / (alpha * (alpha**2 + sigma**2))
    for ours, exact in zip(measured, kl, strict=True):
        close(ours, weight * exact / 2)  # the surrogate is a mean over two dimensions


@processes
@pytest.mark.parametrize("t", [0.3, 0.6])
def test_vsd_is_the_kl_gradient(process: Process, t: float):
    check_vsd_is_the_kl_gradient(process, t)


DIRECTIONS: dict[str, Objective] = {"dmd": DMD(times=only(0.5)), "dmd2": DMD2(gan=0.0, times=only(0.5))}


def check_dmd_direction(process: Process, name: str) -> None:
    """The batch average of (fake - real) / mean|x0 - real|, each from plain linear algebra."""
    z, eps = quasi_random(2)
    batch = scripted(z, eps)
    batch.pairs = Pair(z, z)
    measured = slopes(gaussian_roles(process), DIRECTIONS[name], batch, "dm")
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = OTHER_MEAN + z @ OTHER_FACTOR.T
    x_t = alpha * x0 + sigma * eps
    real = believed(MEAN, COVARIANCE, x_t, alpha, sigma)
    fake = believed(OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T, x_t, alpha, sigma)
    grad = (fake - real) / ((x0 - real).abs().sum(dim=1, keepdim=True) / 2)
    close(measured, (grad.mean(dim=0) / 2, grad.T @ z / len(z) / 2))
    assert measured[0] @ (OTHER_MEAN - MEAN) > 0, "descent leads away from the data"


@processes
@pytest.mark.parametrize("name", DIRECTIONS)
def test_dmd_follows_its_formula(process: Process, name: str):
    check_dmd_direction(process, name)


def check_noise_below_resolution_is_harmless() -> None:
    """On EDM the lowest times add noise that fp32 cannot hold: both scores then return the sample itself."""
    z, eps = (x.float() for x in quasi_random(2))
    for slope in slopes(gaussian_roles(EDM()), DMD2(gan=0.0, times=only(0.02)), scripted(z, eps), "dm"):
        assert (slope.abs() < 0.1).all()


def test_noise_below_resolution_is_harmless():
    check_noise_below_resolution_is_harmless()


MATCHING: dict[str, tuple[Objective, str]] = {
    "vsd": (VSD(guidance=1.0), "vsd"),
    "dmd": (DMD(), "dm"),
    "dmd2": (DMD2(gan=0.0), "dm"),
}


def check_fixed_point(process: Process, name: str) -> None:
    objective, term = MATCHING[name]
    real = ExactDenoiser(process, PLANE)
    roles = gaussian_roles(process, real_score=real, fake_score=real)
    z, eps = quasi_random(2)
    batch = scripted(z, eps)
    batch.pairs = Pair(z, z)
    for slope in slopes(roles, objective, batch, term):
        assert torch.equal(slope, torch.zeros_like(slope))


@processes
@pytest.mark.parametrize("name", MATCHING)
def test_equal_scores_leave_the_generator_alone(process: Process, name: str):
    check_fixed_point(process, name)


def check_only_the_real_score_is_guided() -> None:
    process = Flow()
    real, fake = Recorder(ExactDenoiser(process, PLANE)), Recorder(ExactDenoiser(process, PLANE))
    roles = gaussian_roles(process, real_score=real, fake_score=fake)
    batch = toy_batch(PLANE, 64, *streams().values())
    scores = compare(roles, batch, batch.x0, law=Uniform(), guidance=3.0)
    x_t, t = fake.calls[0].x_t, scores.t
    exact = ExactDenoiser(process, PLANE)
    cond, null = exact(x_t, t, batch.cond), exact(x_t, t, batch.cond.unconditional)
    close(scores.real.x0, null.x0 + 3 * (cond.x0 - null.x0), tolerance=1e-5)
    close(scores.fake.x0, cond.x0, tolerance=1e-5)
    assert [len(call.x_t) for call in real.calls] == [128], "a guidance pair is one call"


def test_only_the_real_score_is_guided():
    check_only_the_real_score_is_guided()


# Who gets gradients


def batch_for(objective: Objective) -> Batch:
    """A batch with exactly what the objective says it needs."""
    batch = toy_batch(PLANE, 16, *streams().values())
    batch.pairs = Pair(batch.noise(), batch.noise()) if "pairs" in objective.needs else None
    batch.real = batch.real if "images" in objective.needs else None
    batch.cond = batch.cond if "null" in objective.needs else replace(batch.cond, null=None)
    return batch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_exactly_the_turns_roles(name: str):
    objective = OBJECTIVES[name]()
    roles = toy_roles(Flow(), PLANE, [even_grid(1), even_grid(4)], updates=0)
    for turn in dict.fromkeys(objective.cycle):
        with roles.training(turn):
            terms = getattr(objective, turn[0])(roles, batch_for(objective))
            sum(terms.values()).backward()
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        for role in roles.members:
            reached = [parameter.grad is not None for parameter in roles.parameters(role)]
            assert all(reached) if role in turn else not any(reached), f"{turn}: {role}"
            roles[role].zero_grad()


def check_scores_hold_no_graph() -> None:
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    batch = toy_batch(PLANE, 16, *streams().values())
    with roles.training(("generator", "fake_score")):
        x0 = land("one_step", roles, batch).x
        scores = compare(roles, batch, x0, law=Uniform(), guidance=1.0)
    assert x0.requires_grad
    assert not scores.fake.x0.requires_grad


def test_scores_hold_no_graph():
    check_scores_hold_no_graph()


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_look_stores_no_graph_and_through_keeps_the_one_to_x_t(w: float):
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    batch = toy_batch(PLANE, 16, *streams().values())
    x_t, t = batch.x0.requires_grad_(), batch.full(0.5)
    looked = guided(look, roles.fake_score, x_t, t, batch.cond, w=w)
    seen = guided(through, roles.fake_score, x_t, t, batch.cond, w=w)
    assert torch.equal(looked.x0, seen.x0)
    assert not looked.x0.requires_grad
    seen.x0.sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in roles.parameters("fake_score"))


def test_the_surrogates_gradient_is_what_it_was_given():
    x, grad = torch.randn(2, 5, 3)
    x.requires_grad_()
    surrogate(x, grad).backward()
    torch.testing.assert_close(x.grad, grad / 15, rtol=1e-4, atol=1e-6)


# Rollouts


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
        self.inner, self.process, self.guide = inner, inner.process, inner.guide
        self.calls: list[Call] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        self.calls.append(Call(x_t.detach(), t, cond, prediction.x0.detach(), torch.is_grad_enabled()))
        return prediction


def recorded_roles(process: Process, grids: list[Tensor]) -> tuple[Roles, Recorder]:
    recorder = Recorder(AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR))
    return Roles({"generator": recorder}, grids=grids), recorder


STOPS = torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=torch.float64)


def check_backward_simulation(process: Process) -> None:
    depths = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        script = list(torch.randn(4, 6, 2, dtype=torch.float64))
        batch = scripted(*script, seed=seed)
        with roles.training(("generator",)):
            landing = land("backward_simulation", roles, batch)
            (slope,) = torch.autograd.grad(landing.x.sum(), recorder.inner.mean)
        depth = len(recorder.calls) - 1
        depths.add(depth)
        close(torch.stack([call.t[0] for call in recorder.calls]), STOPS[: depth + 1])
        close(recorder.calls[0].x_t, process.prior(script[0], batch.full(0.9)))
        for i in range(1, depth + 1):
            expected = process.alpha(STOPS[i]) * recorder.calls[i - 1].x0 + process.sigma(STOPS[i]) * script[i]
            close(recorder.calls[i].x_t, expected)
        assert [call.recorded_graph for call in recorder.calls] == depth * [False] + [True]
        close(slope, torch.full((2,), 6.0, dtype=torch.float64))
        assert torch.equal(landing.t, batch.full(STOPS[depth]))
        assert torch.equal(landing.s, batch.full(0.0))
    assert depths == {0, 1, 2, 3}


@processes
def test_backward_simulation_is_the_generators_own_sampling(process: Process):
    check_backward_simulation(process)


def test_the_depth_is_that_of_the_shared_stream():
    depths = []
    for seed in (1, 2):
        rng, shared_rng = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
        roles, recorder = recorded_roles(Flow(), [even_grid(4), even_grid(2)])
        batch = Batch(REAL.uncond(4), (2,), rng, shared_rng)
        counts = []
        for _ in range(16):
            land("backward_simulation", roles, batch)
            counts.append(len(recorder.calls))
        depths.append(counts)
    assert depths[0] == depths[1]
    assert len(set(torch.tensor(depths[0]).diff().tolist())) == 4


@processes
def test_one_step_is_one_call_at_the_first_time_of_a_grid(process: Process):
    roles, recorder = recorded_roles(process, [STOPS, even_grid(2)])
    z = torch.randn(6, 2, dtype=torch.float64)
    starts = set()
    for seed in range(8):
        landing = land("one_step", roles, scripted(z, seed=seed))
        close(landing.x, OTHER_MEAN + z @ OTHER_FACTOR.T)
        starts.add(landing.t[0].item())
    assert len(recorder.calls) == 8
    assert starts == {0.9, 1.0}


@processes
def test_noised_data_starts_from_real_samples(process: Process):
    starts = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        real, eps = torch.randn(2, 6, 2, dtype=torch.float64)
        t = land("noised_data", roles, scripted(eps, seed=seed, real=real)).t
        fresh = process.prior(eps, t) if t[0] == STOPS[0] else process.renoise(real, t, eps)
        close(recorder.calls[0].x_t, fresh)
        starts.add(t[0].item())
    assert starts == set(STOPS.tolist())


def test_turns_that_share_a_batch_share_its_rollout():
    roles, recorder = recorded_roles(Flow(), [even_grid(1)])
    with roles.training(("generator",)):
        first, second = (toy_batch(PLANE, 8, *streams(seed).values()) for seed in (0, 1))
        x = land("one_step", roles, first).x
        kept = landed("one_step", roles, first)
        fresh = landed("one_step", roles, second)
        assert torch.equal(landed("one_step", roles, second).x, fresh.x)
    assert torch.equal(kept.x, x)
    assert x.requires_grad
    assert not kept.x.requires_grad
    assert not fresh.x.requires_grad
    assert len(recorder.calls) == 2


# The GAN of DMD2


class Judge(nn.Module):
    """A linear discriminator, zero at first, that remembers its question."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.x_t, self.t = x_t.detach(), t
        return (x_t @ self.weight)[:, None]


def check_gan_gradient(process: Process) -> None:
    """- gan (1 - sigmoid(logit)) alpha (score_real - score_fake): towards larger logits."""
    z, eps, other = *quasi_random(2), quasi_random(2)[1].flip(0)
    roles = gaussian_roles(process)
    roles.members["discriminator"] = ExactRatio(roles["real_score"], roles["fake_score"])
    measured = slopes(roles, DMD2(gan=0.7, gan_times=only(0.6)), scripted(z, eps, other), "gan")
    t = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * other
    real, fake = (
        torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2))
        for mean, covariance in ((MEAN, COVARIANCE), (OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T))
    )
    logit = real.log_prob(x_t) - fake.log_prob(x_t)
    scores = [torch.linalg.solve(law.covariance_matrix, (law.mean - x_t).T).T for law in (real, fake)]
    grad = -0.7 * sigmoid(-logit)[:, None] * alpha * (scores[0] - scores[1])
    close(measured, (grad.mean(dim=0), grad.T @ z / len(z)))


@processes
def test_the_gan_term_raises_the_logit(process: Process):
    check_gan_gradient(process)


def judged(*, real: Tensor, fake: Tensor, gan_fake: float) -> tuple[Judge, float]:
    """The judge after a backward pass of the fake score's turn, and the GAN term."""
    judge = Judge()
    roles = gaussian_roles(Flow(), discriminator=judge)
    batch = scripted(real, real=real)
    batch = Batch(batch.cond, (2,), **streams(), real=real)
    batch.landing = Landing(fake, batch.full(0.0), batch.full(1.0))
    with roles.training(("fake_score", "discriminator")):
        term = DMD2(gan_fake=gan_fake).fake_score(roles, batch)["gan"]
        term.backward()
    return judge, term.item()


def check_discriminator_gradient() -> None:
    """At zero logits the descent direction is half the mean of the real minus that of the fake samples."""
    noise = torch.randn(64, 2, dtype=torch.float64)
    judge, term = judged(real=noise + 5, fake=noise - 5, gan_fake=0.1)
    real, fake = judge.x_t.chunk(2)
    assert term == pytest.approx(0.1 * 2 * math.log(2))
    close(judge.weight.grad, -0.05 * (real.mean(dim=0) - fake.mean(dim=0)))
    assert (judge.weight.grad < 0).all(), "descent must raise the logits of the real samples, which lie at +5"


def test_the_discriminator_learns_that_large_is_real():
    check_discriminator_gradient()


def check_real_and_fake_are_noised_independently() -> None:
    x0 = torch.randn(2048, 2, dtype=torch.float64)
    judge, _ = judged(real=x0, fake=x0, gan_fake=1.0)
    t = judge.t.chunk(2)
    eps = [(x_t - (1 - u)[:, None] * x0) / u[:, None] for x_t, u in zip(judge.x_t.chunk(2), t, strict=True)]
    assert abs(torch.corrcoef(torch.stack(t))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([e.flatten() for e in eps]))[0, 1]) < 0.1
    close(torch.cat(eps).std(), torch.ones((), dtype=torch.float64), tolerance=0.05)


def test_real_and_fake_are_noised_independently():
    check_real_and_fake_are_noised_independently()


@pytest.mark.parametrize("turn", ["generator", "fake_score"])
def test_gan_weights_scale_their_terms_alone(turn: str):
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    first, second = (
        getattr(DMD2(gan=gan, gan_fake=gan), turn)(roles, toy_batch(PLANE, 16, *streams().values()))
        for gan in (0.1, 0.3)
    )
    torch.testing.assert_close(second["gan"], 3 * first["gan"])
    assert all(torch.equal(first[term], second[term]) for term in first if term != "gan")


def test_without_a_gan_dmd2_needs_neither_images_nor_a_discriminator():
    objective, roles = DMD2(gan=0.0), gaussian_roles(Flow())
    assert "discriminator" not in roles
    for turn in (objective.generator, objective.fake_score):
        assert "gan" not in turn(roles, Batch(REAL.uncond(8), (2,), **streams()))
    with pytest.raises(ValueError, match='list "images"'):
        DMD2().fake_score(gaussian_roles(Flow(), discriminator=Judge()), Batch(REAL.uncond(8), (2,), **streams()))


# Cycles and needs

GENERATOR, FAKE, BOTH = ("generator",), ("fake_score",), ("fake_score", "discriminator")


@pytest.mark.parametrize(
    ("objective", "cycle", "needs"),
    [
        (VSD(), (GENERATOR, FAKE), {"real_score", "null"}),
        (VSD(guidance=1.0, ratio=3), (GENERATOR, FAKE, FAKE, FAKE), {"real_score"}),
        (DMD(), (GENERATOR, FAKE), {"real_score", "pairs"}),
        (DMD(guidance=2.0), (GENERATOR, FAKE), {"real_score", "pairs", "null"}),
        (DMD2(), (GENERATOR, *5 * (BOTH,)), {"real_score", "images"}),
        (DMD2(gan=0.0, ratio=2), (GENERATOR, FAKE, FAKE), {"real_score"}),
        (DMD2(gan=0.0, rollout="noised_data", ratio=1), (GENERATOR, FAKE), {"real_score", "images"}),
        (KnowledgeDistillation(), (GENERATOR,), {"pairs"}),
        (Pretrain(), (GENERATOR,), {"images", "null"}),
        (Pretrain(label_dropout=0.0), (GENERATOR,), {"images"}),
    ],
    ids=repr,
)
def test_cycles_and_needs(objective: Objective, cycle: tuple, needs: set[str]):
    assert objective.cycle == cycle
    assert objective.needs == needs


@pytest.mark.parametrize("kind", [VSD, DMD, DMD2])
def test_a_fake_score_that_never_learns_is_refused(kind: type[Objective]):
    with pytest.raises(ValueError, match="at least one update per generator update"):
        _ = kind(ratio=0).cycle


# Regression


REGRESSIONS: dict[str, tuple[Objective, float]] = {
    "kd": (KnowledgeDistillation(huber=0.3), 1.0),
    "dmd": (DMD(regression=0.4, huber=0.3), 0.4),
}


def check_regression(process: Process, name: str) -> None:
    """Weight, value and finite differences of sqrt(mean d^2 + c^2) - c, over the generator's mean."""
    objective, weight = REGRESSIONS[name]
    eps, wanted, *more = torch.randn(4, 12, 2, dtype=torch.float64)
    batch = scripted(*more)
    batch.pairs = Pair(eps, wanted)

    def expected(mean: Tensor) -> float:
        gap = mean + eps @ OTHER_FACTOR.T - wanted
        return weight * ((gap**2).sum(dim=1) / 2 + 0.09).sqrt().sub(0.3).mean().item()

    measured, _ = slopes(gaussian_roles(process), objective, batch, "regression")
    for axis in torch.eye(2, dtype=torch.float64):
        difference = expected(OTHER_MEAN + 1e-5 * axis) - expected(OTHER_MEAN - 1e-5 * axis)
        assert (measured @ axis).item() == pytest.approx(difference / 2e-5, abs=1e-7)


@processes
@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression_has_the_pseudo_huber_gradient(process: Process, name: str):
    check_regression(process, name)


# Denoising

LEARNERS: dict[str, Objective] = {
    "pretrain": Pretrain(label_dropout=0.0, times=only(0.5), space="x0"),
    "vsd": VSD(fake_times=only(0.5), fake_space="x0"),
    "dmd": DMD(fake_times=only(0.5), fake_space="x0"),
    "dmd2": DMD2(gan=0.0, fake_times=only(0.5), fake_space="x0"),
}


def check_denoising_floor(process: Process, name: str, space: str = "x0") -> None:
    """The exact denoiser's loss is sum_j l_j sigma^2 / (alpha^2 l_j + sigma^2), divided by the dimension."""
    z, eps = cubature(2)
    objective = LEARNERS[name]
    if name == "pretrain":
        objective, covariance = replace(objective, space=space), COVARIANCE
        roles = Roles({"generator": ExactDenoiser(process, REAL)}, grids=[even_grid(1)])
        real = MEAN + z @ torch.linalg.cholesky(COVARIANCE).T
        loss = objective.generator(roles, scripted(eps, real=real))["denoise"]
    else:
        objective, covariance = replace(objective, fake_space=space), OTHER_FACTOR @ OTHER_FACTOR.T
        loss = objective.fake_score(gaussian_roles(process), scripted(z, eps))["denoise"]
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = process.alpha(t) ** 2, process.sigma(t) ** 2
    values = torch.linalg.eigvalsh(covariance)
    floor = (values * sigma / (alpha * values + sigma)).sum() / 2
    close(loss, floor * {"x0": 1, "eps": alpha / sigma}[space])


@processes
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("space", ["x0", "eps"])
def test_the_exact_denoiser_reaches_the_floor(process: Process, name: str, space: str):
    check_denoising_floor(process, name, space)


def check_label_dropout(share: float) -> None:
    recorder = Recorder(ExactDenoiser(Flow(), PLANE))
    batch = toy_batch(PLANE, 4096, *streams().values())
    Pretrain(label_dropout=share).generator(Roles({"generator": recorder}, grids=[]), batch)
    told, labels = (cond.batched["class_labels"] for cond in (recorder.calls[0].cond, batch.cond))
    dropped = told == -1
    assert torch.equal(told[~dropped], labels[~dropped])
    assert dropped.double().mean().item() == pytest.approx(share, abs=0.03)
    assert labels[dropped].double().mean().item() == pytest.approx(0.5, abs=0.06) or share == 0


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_labels_are_dropped_as_often_as_asked(share: float):
    check_label_dropout(share)


# Mutants


def undetached_scores(roles: Roles, batch: Batch, x0: Tensor, *, law: object, guidance: float) -> matching.Scores:
    noised = matching.renoised(roles, batch, x0, law=law)
    real, fake = (through(model, noised.x_t, noised.t, batch.cond) for model in (roles.real_score, roles.fake_score))
    return matching.Scores(noised.t, real, fake)


def one_noise_for_all(roles: Roles, batch: Batch, x0: Tensor, *, law: object) -> object:
    return matching.renoised(roles, replace(batch, **streams()), x0, law=law)


@dataclass(frozen=True)
class Mutant:
    """(owner, name, wrong version) of what is replaced, and the check that has to notice."""

    patches: list[tuple[object, str, object]]
    check: Callable[[], None]


def vsd_on_flow() -> None:
    check_vsd_is_the_kl_gradient(Flow(), 0.3)


def dmd2_on_flow() -> None:
    check_dmd_direction(Flow(), "dmd2")


RIGHT = matching.matching_gradient
MUTANTS = {
    "flipped direction": Mutant([(dmd2, "matching_gradient", lambda x0, s: -RIGHT(x0, s))], dmd2_on_flow),
    "no normaliser": Mutant([(dmd2, "matching_gradient", lambda x0, s: s.fake.x0 - s.real.x0)], dmd2_on_flow),
    "one normaliser for the batch": Mutant([(matching, "mean_abs", lambda x: x.abs().mean())], dmd2_on_flow),
    "normalised by the fake score": Mutant(
        [(dmd2, "matching_gradient", lambda x0, s: RIGHT(x0 + s.real.x0 - s.fake.x0, s))], dmd2_on_flow
    ),
    "no floor": Mutant(
        [
            (
                dmd2,
                "matching_gradient",
                lambda x0, s: (s.fake.x0 - s.real.x0) / mean_abs(x0.detach() - s.real.x0),
            )
        ],
        check_noise_below_resolution_is_harmless,
    ),
    "vsd without weight": Mutant([(vsd_module, "pad_like", lambda level, x: torch.ones_like(x))], vsd_on_flow),
    "vsd uphill": Mutant([(vsd_module, "surrogate", lambda x, grad: surrogate(x, -grad))], vsd_on_flow),
    "summed, not averaged": Mutant(
        [(vsd_module, "surrogate", lambda x, grad: x.numel() * surrogate(x, grad))], vsd_on_flow
    ),
    "detached generator": Mutant([(rollout, "through", look)], vsd_on_flow),
    "scores with a graph": Mutant([(matching, "look", through)], check_scores_hold_no_graph),
    "scores in the loss": Mutant(
        [(dmd2, "compare", undetached_scores), (dmd2, "surrogate", lambda x, grad: (x * grad).mean())],
        dmd2_on_flow,
    ),
    "a moved fixed point": Mutant(
        [(dmd, "surrogate", lambda x, grad: surrogate(x, grad + 1e-6))],
        lambda: check_fixed_point(Flow(), "dmd"),
    ),
    "guidance forgotten": Mutant(
        [(matching, "guided", lambda call, *rest, w: call(*rest))], check_only_the_real_score_is_guided
    ),
    "generator against the discriminator": Mutant(
        [(dmd2, "generator_loss", lambda fake: softplus(fake).mean())], lambda: check_gan_gradient(Flow())
    ),
    "saturating generator": Mutant(
        [(dmd2, "generator_loss", lambda fake: -softplus(fake).mean())], lambda: check_gan_gradient(Flow())
    ),
    "real and fake swapped": Mutant(
        [(dmd2, "discriminator_loss", lambda real, fake: softplus(real).mean() + softplus(-fake).mean())],
        check_discriminator_gradient,
    ),
    "one noise for real and fake": Mutant(
        [(dmd2, "renoised", one_noise_for_all)], check_real_and_fake_are_noised_independently
    ),
    "gradient through the whole rollout": Mutant(
        [(rollout, "look", through)], lambda: check_backward_simulation(Flow())
    ),
    "no noise between steps": Mutant(
        [(Flow, "renoise", lambda self, x0, t, eps: self.alpha(t)[:, None] * x0)],
        lambda: check_backward_simulation(Flow()),
    ),
    "one step too deep": Mutant(
        [(rollout, "_drawn", lambda count, batch: count - 1)], lambda: check_backward_simulation(Flow())
    ),
    "squared error": Mutant(
        [(kd, "pseudo_huber", lambda d, *, c: d.square().mean())], lambda: check_regression(Flow(), "kd")
    ),
    "regression unweighted": Mutant(
        [(dmd, "pseudo_huber", lambda d, *, c: 2 * kd.pseudo_huber(d, c=c))],
        lambda: check_regression(Flow(), "dmd"),
    ),
    "fake score taught in another space": Mutant(
        [(matching, "denoising_loss", lambda p, x0, eps, *, space: (p.eps - eps).square().mean())],
        lambda: check_denoising_floor(PROCESSES["vp"], "dmd2"),
    ),
    "teacher taught other samples": Mutant(
        [(pretrain, "denoising_loss", lambda p, x0, eps, *, space: (p.x0 - x0.flip(0)).square().mean())],
        lambda: check_denoising_floor(Flow(), "pretrain"),
    ),
    "labels never dropped": Mutant(
        [(Conditioning, "dropped", lambda self, rows: self)], lambda: check_label_dropout(0.25)
    ),
    "the other labels dropped": Mutant(
        [(Conditioning, "dropped", lambda self, rows: WELL_DROPPED(self, ~rows))],
        lambda: check_label_dropout(0.25),
    ),
}
WELL_DROPPED = Conditioning.dropped


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    mutant = MUTANTS[name]
    mutant.check()
    for owner, attribute, wrong in mutant.patches:
        monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        mutant.check()
