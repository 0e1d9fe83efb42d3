"""Our side of the comparison with official matching code: processes, time laws and the gradients that are compared."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from official import EPS, OTHER, at, batch_of, trio
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Objective
from fastgen.objectives.distribution.tdm import TDM
from fastgen.process import EDM, Discrete, Flow, Uniform

SCALED = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SD, RAMP, FLOW = Discrete(SCALED.alphas_cumprod.double()), EDM(), Flow()


def on_edm() -> Roles:
    return trio(RAMP, row="x0", level=RAMP.sigma)


def on_sd(**settings: Any) -> Roles:
    return trio(SD, row="eps", level=lambda t: SD.clock(t) / 1000, **settings)


def on_flow(**settings: Any) -> Roles:
    return trio(FLOW, row="flow", level=lambda t: t, **settings)


def sigmas(values: list[float]) -> Uniform:
    return at(RAMP.from_clock(torch.tensor(values, dtype=torch.float64)))


def steps(values: list[float]) -> Uniform:
    return at(SD.from_clock(torch.tensor(values, dtype=torch.float64)))


def times(values: list[float]) -> Uniform:
    return at(torch.tensor(values, dtype=torch.float64))


def above(t: Tensor, s: float) -> Uniform:
    """The law that is t once it is laid over the times above s."""
    return at((t - s) / (1 - s))


def by_sample(roles: Roles, objective: Objective, term: str, *, seed: int = 0) -> Tensor:
    """Gradient of a generator's term by the clean sample, every look with the same noise."""
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch_of(EPS, EPS, EPS, seed=seed))[term]
        return torch.autograd.grad(loss, roles["generator"].x0)[0]


def by_fake(roles: Roles, objective: Objective, *, seed: int = 0) -> Tensor:
    """Derivatives of the fake score's loss by its two weights."""
    fake = roles["fake_score"]
    with roles.training(("fake_score",)):
        loss = objective.fake_score(roles, batch_of(EPS, EPS, OTHER, seed=seed))["denoise"]
        return torch.stack(torch.autograd.grad(loss, [fake.a, fake.b]))


def by_judge(roles: Roles, objective: Objective) -> Tensor:
    """Derivative of the discriminator's loss by its weight; real samples have noise of their own unless paired."""
    with roles.training(("fake_score", "discriminator")):
        loss = objective.fake_score(roles, batch_of(EPS, EPS, OTHER))["gan"]
        return torch.autograd.grad(loss, roles["discriminator"].c)[0]


def first_phase(roles: Roles) -> int:
    """A seed of the shared stream whose rollouts end after their first step."""
    for seed in range(20):
        batch = batch_of(EPS, EPS, seed=seed)
        TDM().fake_score(roles, batch)
        if batch.landing.landed.any():
            return seed
    raise AssertionError("no rollout ended after its first step")
