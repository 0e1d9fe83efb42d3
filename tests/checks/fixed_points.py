"""Directions of score matching: closed forms, fixed points, and who gets gradients."""

from dataclasses import replace

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    believed,
    clean,
    close,
    cubature,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from recorder import Recorder

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.models.state import STATES
from fastgen.models.walk import Plan
from fastgen.objectives import OBJECTIVES, Objective, Pair
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.objectives.parts.matching import compare
from fastgen.objectives.parts.originals import DATA
from fastgen.objectives.parts.rollout import land
from fastgen.process import EDM, Flow, Process, Uniform, even_grid
from fastgen.proofs.analytic import ExactDenoiser, ExactRatio
from fastgen.proofs.toy import indifferent, toy_batch, toy_roles


def check_vsd_is_the_kl_gradient(process: Process, t: float) -> None:
    """alpha sigma (fake - real) is the KL gradient times sigma^3 / alpha (alpha^2 + sigma^2)."""
    z, eps = cubature(2)
    measured = slopes(gaussian_roles(process), VSD(guidance=Fixed(1.0), times=only(t)), scripted(z, eps), "dm")
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


DIRECTIONS: dict[str, Objective] = {"dmd": DMD(times=only(0.5)), "dmd2": DMD2(gan=GAN(0.0), times=only(0.5))}


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


def check_noise_below_resolution_is_harmless() -> None:
    """Far below EDM's smallest noise there is less than fp32 can hold: both scores then return the sample itself."""
    z, eps = (x.float() for x in quasi_random(2))
    objective = DMD2(gan=GAN(0.0), times=Uniform(0.0, 1e-13))  # sigma up to 2e-10
    for slope in slopes(gaussian_roles(EDM()), objective, scripted(z, eps), "dm"):
        assert (slope.abs() < 0.1).all()


UNGUIDED: dict[str, Objective] = {"decoupled_dmd": DecoupledDMD(augmentation=1.0)}
"""Guidance moves the point where the scores agree; here is how to leave it out where it is not a law."""


def check_fixed_point(process: Process, name: str) -> None:
    """Exactly, sample by sample: where the scores agree so do their slopes, which the path objectives see as well."""
    objective = UNGUIDED.get(name) or replace(OBJECTIVES[name](), guidance=Fixed(1.0))
    real = ExactDenoiser(process, PLANE)
    states = {state: STATES[state]() for state in objective.needs.states}
    states |= {"rewards": indifferent()} if objective.needs.rewards else {}
    roles = gaussian_roles(process, real_score=real, fake_score=real, discriminator=ExactRatio(real, real), **states)
    roles = Roles(roles.members, Plan([even_grid(2)], sampler=objective.needs.sampler or "renoise"))
    batch = toy_batch(PLANE, 64, *streams().values())
    batch.pairs = Pair(batch.noise(), batch.noise())
    with roles.training(("generator",)):
        terms = objective.generator(roles, batch)
        for anchor in ("regression", "diversity", "tangent"):
            terms.pop(anchor, None)
        sum(terms.values()).backward()
    for parameter in roles.parameters("generator"):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def check_only_the_real_score_is_guided() -> None:
    process = Flow()
    real, fake = Recorder(ExactDenoiser(process, PLANE)), Recorder(ExactDenoiser(process, PLANE))
    roles = gaussian_roles(process, real_score=real, fake_score=fake)
    batch = toy_batch(PLANE, 64, *streams().values())
    scores = compare(look, VSD(guidance=Fixed(3.0)), roles, batch, clean(batch, batch.x0))
    x_t, t = fake.calls[0].x_t, scores.t
    exact = ExactDenoiser(process, PLANE)
    cond, null = exact(x_t, t, batch.cond), exact(x_t, t, batch.cond.unconditional)
    close(scores.real.x0, null.x0 + 3 * (cond.x0 - null.x0), tolerance=1e-5)
    close(scores.fake.x0, cond.x0, tolerance=1e-5)
    assert [len(call.x_t) for call in real.calls] == [128], "a guidance pair is one call"


def check_scores_hold_no_graph() -> None:
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    batch = toy_batch(PLANE, 16, *streams().values())
    with roles.training(("generator", "fake_score")):
        x0 = land("one_step", roles, batch).x
        scores = compare(look, VSD(guidance=Fixed(1.0)), roles, batch, clean(batch, x0))
    assert x0.requires_grad
    assert not scores.fake.x0.requires_grad


def check_the_fake_turn_learns_of_what_is_there(name: str) -> None:
    """The generator's own samples where turns share a batch, otherwise fresh ones; neither stores a graph."""
    objective = OBJECTIVES[name]()
    sampler = objective.needs.sampler or "renoise"
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=objective, sampler=sampler)
    generator = Recorder(roles.generator)
    roles = Roles(roles.members | {"generator": generator}, Plan(roles.plan.grids, sampler=sampler))
    shared, fresh = (toy_batch(PLANE, 16, *streams(seed).values()) for seed in (0, 1))
    shared.pairs = Pair(shared.noise(), shared.noise())
    with roles.training(("generator",)):
        objective.generator(roles, shared)
    left, calls = shared.landing, len(generator.calls)
    assert left is not None
    with roles.training(objective.cycle[1]):
        objective.fake_score(roles, shared)
        assert shared.landing is left
        made = len(generator.calls) > calls
        assert made == (getattr(objective, "originals", DATA) is not DATA), "the samples are drawn again"
        objective.fake_score(roles, fresh)
    assert len(generator.calls) > calls
    assert not any(call.recorded_graph for call in generator.calls[calls:])
