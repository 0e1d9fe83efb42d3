"""DP-DMD: the first step is the teacher's trajectory, the others match, and neither reaches into the other."""

from dataclasses import replace

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    PLANE,
    REAL,
    close,
    gaussian_roles,
    processes,
    quasi_random,
    scripted,
    streams,
)
from torch import Tensor, nn

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives.distribution.dp_dmd import DPDMD, VELOCITY
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser
from fastgen.proofs.gaussians import exact_student
from fastgen.proofs.toy import toy_batch, toy_roles

PLAIN = DPDMD(guidance=Fixed(1.0))


class OfSteps(nn.Module):
    """A generator with weights of its own at each of the times 1, 2/3 and 1/3."""

    scalars: tuple[str, ...] = ()

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.process = Flow()
        parts = [AffineGenerator(self.process, MEAN + i, torch.eye(2)) for i in range(steps)]
        self.steps = nn.ModuleList(parts)

    def forward(self, x_t, t, cond, scalars=None):
        return self.steps[round(len(self.steps) * (1 - float(t[0])))](x_t, t, cond)


def reached(term: str, objective: DPDMD = PLAIN) -> list[bool]:
    """Of three steps, which weights a term has a slope by."""
    roles = gaussian_roles(Flow(), generator=OfSteps(3))
    roles = Roles(roles.members, Plan([even_grid(3)], sampler="ode"))
    with roles.training(("generator",)):
        objective.generator(roles, toy_batch(PLANE, 64, *streams().values()))[term].backward()
    return [bool(part.mean.grad is not None and part.mean.grad.any()) for part in roles.generator.steps]


def test_matching_trains_every_step_but_the_first():
    assert reached("dm") == [False, True, True]


def test_the_anchor_trains_the_first_step_alone():
    assert reached("diversity") == [True, False, False]


@pytest.mark.parametrize("anchor", [100, 200])
def test_the_anchor_is_the_teachers_mean_velocity(anchor: int):
    """((1 - V) eps) / (1 - t) - m between N(m, s^2) and noise on a flow, V^2 = (1 - t)^2 s^2 + t^2, by hand."""
    objective = replace(PLAIN, grid=300, anchor=anchor, diversity=0.5)
    deviations, vectors = torch.linalg.eigh(COVARIANCE)
    z, _ = quasi_random(2, 256)
    t = 1 - anchor / 300
    shrunk = ((1 - t) ** 2 * deviations + t**2).sqrt()
    expected = (z @ vectors * ((1 - shrunk) / (1 - t))) @ vectors.T - MEAN
    roles = gaussian_roles(Flow())
    roles = Roles(roles.members, Plan([even_grid(2)], sampler="ode"))
    batch = scripted(z, *2 * [torch.randn(256, 2, generator=torch.Generator().manual_seed(0))])
    said = roles.generator(z, batch.full(1.0), batch.cond).output(VELOCITY)
    found = objective.generator(roles, batch)["diversity"]
    close(found.double(), 0.5 * (said - expected).square().mean(), tolerance=0.01)


@processes
def test_a_student_that_is_the_teachers_flow_has_nothing_to_learn_of_its_first_step(process: Process):
    """To the end of the trajectory, where the whole of it is one step."""
    objective = replace(PLAIN, grid=60, anchor=60, diversity=1.0)
    ends = {}
    for name, student in {
        "exact": exact_student(process),
        "other": AffineGenerator(process, MEAN, torch.eye(2)),
    }.items():
        roles = gaussian_roles(process, generator=student, real_score=ExactDenoiser(process, REAL))
        roles = Roles(roles.members, Plan([even_grid(2)], sampler="ode"))
        ends[name] = objective.generator(roles, toy_batch_of(64))["diversity"]
    assert ends["exact"] < 0.03 * ends["other"]


def toy_batch_of(count: int):
    return replace(toy_batch(PLANE, count, *streams().values()), cond=REAL.uncond(count), real=None)


def test_the_teacher_is_guided_to_the_anchor():
    """At w = 3 elsewhere than at 1; the noise is the student's own."""
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=PLAIN, sampler="ode")
    started: list[Tensor] = []
    roles["real_score"].register_forward_pre_hook(lambda _, told: started.append(told[0]))
    found = {}
    for w in (1.0, 3.0):
        started.clear()
        batch = toy_batch(PLANE, 64, *streams().values())
        noise = toy_batch(PLANE, 64, *streams().values()).noise()
        found[w] = replace(PLAIN, guidance=Fixed(w)).generator(roles, batch)["diversity"]
        walked = [x for x in started if torch.equal(x[:64], noise)]
        assert len(walked) == 1, "the first of the teacher's steps begins at the student's noise"
    assert (found[3.0] - found[1.0]).abs() > 1e-3


def test_settings_that_cannot_work_are_refused():
    for settings, words in (({"diversity": 0.0}, "nothing else trains the first step"), ({"anchor": 31}, "31 of 30")):
        with pytest.raises(ValueError, match=words):
            DPDMD(**settings)
