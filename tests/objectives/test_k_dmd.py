"""K-DMD: what its coach is asked, and what the student learns of the answer, against plain algebra; made wrong too."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from adversaries import TILT, Judge
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    close,
    cubature,
    gaussian_roles,
    only,
    processes,
    scripted,
    slopes,
)
from mutants import Mutant
from recorder import Recorder
from torch import Tensor

from fastgen.models.calls import look, through
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import DMD2, Needs, Objective
from fastgen.objectives.distribution import k_dmd
from fastgen.objectives.distribution.k_dmd import KnowledgeGuidedDMD
from fastgen.objectives.parts.gan import GAN, generator_terms
from fastgen.objectives.parts.ops import surrogate
from fastgen.objectives.parts.weights import weighed
from fastgen.process import ROWS, Flow, Prediction, Process
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser

FACTOR = torch.linalg.cholesky(COVARIANCE)
OBJECTIVE = KnowledgeGuidedDMD(times=only(0.5), knowledge=0.7)
STOPS = [1.0, 0.6]


def roles_of(process: Process) -> Roles:
    """Two steps, and a coach whose samples are the data's in any of them."""
    coach = Recorder(AffineGenerator(process, MEAN, FACTOR))
    members = gaussian_roles(process, coach=coach).members
    return Roles(members, Plan([torch.tensor(STOPS, dtype=torch.float64)]))


def check_the_regression(process: Process, seed: int) -> None:
    """0.7 mean((1 + alpha / sigma)^2 (x0 - coach)^2) at what the last call was given, by mean and factor."""
    z, eps, more = (
        torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    batch, roles = scripted(z, eps, more, seed=seed), roles_of(process)
    measured = slopes(roles, OBJECTIVE, batch, "knowledge")
    depth = 1 - len(batch.script)
    t = torch.tensor(STOPS[depth], dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * eps if depth else process.prior(z, t.expand(64))
    assert len(roles["coach"].calls) == 1
    asked = roles["coach"].calls[0]
    close(asked.x_t, x_t)
    close(asked.t, t.expand(64))
    assert not asked.recorded_graph
    u = x_t / process.prior(torch.ones_like(x_t), t.expand(64))
    apart = (1 + alpha / sigma) ** 2 * (OTHER_MEAN - MEAN + u @ (OTHER_FACTOR - FACTOR).T)
    close(measured, (0.7 * apart.mean(dim=0), 0.7 * apart.T @ u / len(u)))


def check_the_rest() -> None:
    """What the scores and an adversary have the student learn is what they have it learn in DMD2."""
    settings = {"weight": "vsd", "times": only(0.5), "rollout": "trajectory", "gan": GAN(0.3, joint=True)}
    judge = Judge()
    judge.weight.data += TILT

    def learned(objective: Objective, term: str) -> tuple[Tensor, Tensor]:
        members = gaussian_roles(Flow(), discriminator=judge).members
        roles = Roles(members, Plan([torch.tensor(STOPS, dtype=torch.float64)], sampler="ode"))
        draws = (torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4))
        return slopes(roles, objective, scripted(*draws), term)

    for term in ("dm", "gan"):
        close(learned(KnowledgeGuidedDMD(**settings), term), learned(DMD2(**settings), term), tolerance=0.0)


def check_both_steps(process: Process) -> None:
    for seed in (0, 1):
        check_the_regression(process, seed)


@processes
def test_the_student_is_held_to_what_the_coach_says_of_its_own_calls(process: Process):
    check_both_steps(process)


def test_beside_its_coach_it_is_dmd2():
    check_the_rest()


def test_a_student_that_is_its_coach_and_has_the_datas_law_rests():
    """Away from there each term alone moves it; beside a coach of another law it rests at neither."""
    process, (z, eps) = Flow(), cubature(2)
    exact = partial(AffineGenerator, process, MEAN, FACTOR)

    def pull(student: AffineGenerator, coach: AffineGenerator) -> Tensor:
        fake = ExactDenoiser(process, student.law())
        roles = gaussian_roles(process, generator=student, fake_score=fake, coach=coach)
        terms = [slopes(roles, OBJECTIVE, scripted(z, eps), term)[0] for term in ("dm", "knowledge")]
        return torch.stack(terms)

    close(pull(exact(), exact()), torch.zeros(2, 2, dtype=torch.float64))
    away = pull(AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR), exact())
    assert (away @ (OTHER_MEAN - MEAN) > 0).all()
    other = AffineGenerator(process, MEAN + 1, FACTOR)
    close(pull(exact(), other)[0], torch.zeros(2, dtype=torch.float64))
    assert pull(exact(), other)[1].norm() > 0.1
    assert pull(AffineGenerator(process, MEAN + 1, FACTOR), other)[0].norm() > 0.1


def test_without_knowledge_no_coach_is_asked_and_it_is_dmd2():
    objective = KnowledgeGuidedDMD(knowledge=0.0)
    assert objective.needs == Needs(real_score=True)
    z, eps = cubature(2)
    terms = objective.generator(gaussian_roles(Flow()), scripted(z, eps, eps))
    assert set(terms) == {"dm"}


def test_it_needs_a_coach_and_no_images():
    assert KnowledgeGuidedDMD().needs == Needs(real_score=True, coach=True)
    assert KnowledgeGuidedDMD().cycle == (("generator",), *5 * (("fake_score",),))
    assert KnowledgeGuidedDMD().knowledge == 1
    assert KnowledgeGuidedDMD(knowledge=0.0).cycle == KnowledgeGuidedDMD().cycle
    with pytest.raises(ValueError, match="knowledge is -1: a negative weight"):
        KnowledgeGuidedDMD(knowledge=-1.0)


MATCHED, FLOW = KnowledgeGuidedDMD.matched, partial(check_both_steps, Flow())

MUTANTS = {
    "without its weight": Mutant.of(
        KnowledgeGuidedDMD, "matched", lambda self, *given: MATCHED(replace(self, knowledge=1.0), *given), FLOW
    ),
    "the student flees": Mutant.of(
        KnowledgeGuidedDMD,
        "matched",
        lambda self, *given: {name: -term for name, term in MATCHED(self, *given).items()},
        FLOW,
    ),
    "the student stands still": Mutant.of(
        Prediction, "of_x0", lambda process, x_t, t, x0: OF_X0(process, x_t, t, x0.detach()), FLOW
    ),
    "clean samples are compared": Mutant.of(k_dmd, "VELOCITY", ROWS["x0"], FLOW),
    "noises are compared": Mutant.of(k_dmd, "VELOCITY", ROWS["eps"], FLOW),
    "the coach has a graph": Mutant.of(k_dmd, "look", through, FLOW),
    "the coach is asked at another time": Mutant.of(
        k_dmd, "look", lambda model, x_t, t, *told: look(model, x_t, 0.9 * t, *told), FLOW
    ),
    "the weight of the direction is not read": Mutant.of(
        k_dmd, "weighed", lambda _, *given: weighed("l1", *given), check_the_rest
    ),
    "the direction counts half": Mutant.of(
        k_dmd, "surrogate", lambda x0, direction: surrogate(0.5 * x0, direction), check_the_rest
    ),
    "the adversary counts half": Mutant.of(
        k_dmd,
        "generator_terms",
        lambda *given: {name: 0.5 * term for name, term in generator_terms(*given).items()},
        check_the_rest,
    ),
    "the teacher is asked": Mutant.of(Roles, "coach", property(lambda roles: roles.real_score), FLOW),
}
OF_X0 = Prediction.of_x0


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
