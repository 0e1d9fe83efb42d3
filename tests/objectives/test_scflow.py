"""SCFlow: its four parts against plain algebra, where they rest, and made wrong on purpose.

All networks here are straight flows between Gaussians: x_t = alpha (mean + factor z) + sigma z has its clean sample and
its noise z on every process. The student's clean samples also drift with the time, so that it contradicts itself.
"""

from collections.abc import Callable
from contextlib import nullcontext
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
    REAL,
    close,
    only,
    processes,
    scripted,
    streams,
)
from mutants import Mutant
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgen.models.calls import through
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch, Needs
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import scflow
from fastgen.objectives.trajectory.scflow import SelfCorrectedFlow
from fastgen.process import Flow, Prediction, Process, Uniform, even_grid
from fastgen.proofs.analytic import AffineGenerator
from fastgen.seeds import uniform

COUNT, T, AT = 64, 0.25, 0.6
UNIT, FACTOR = torch.eye(2, dtype=torch.float64), torch.linalg.cholesky(COVARIANCE)
TEACHER, TARGET = (MEAN, FACTOR, torch.zeros(2).double()), (MEAN + 0.2, FACTOR + 0.1 * UNIT, torch.zeros(2).double())
STUDENT = (OTHER_MEAN, OTHER_FACTOR, torch.tensor([0.3, -0.4], dtype=torch.float64))
Flows = tuple[Tensor, Tensor, Tensor]
OBJECTIVE = SelfCorrectedFlow(
    teacher_guidance=Guidance(),
    times=only(T),
    reach=0.2,
    back=0.3,
    straight=0.7,
    ema=1 - 1e-12,
    gan=GAN(0.5, learned=0.2, paired=True, times=only(AT)),
)


def clean_of(process: Process, flow: Flows, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean samples [B, 2] of a straight flow that drifts by (1 - t) times its last vector."""
    mean, factor, drift = flow
    alpha, sigma = (level(t)[:, None, None] for level in (process.alpha, process.sigma))
    z = torch.linalg.solve(alpha * factor + sigma * UNIT, (x_t - alpha[:, 0] * mean)[..., None])[..., 0]
    return mean + z @ factor.T + (1 - t[:, None]) * drift


class Straight(AffineGenerator):
    """Such a flow as a network."""

    def __init__(self, process: Process, flow: Flows) -> None:
        super().__init__(process, flow[0], flow[1])
        self.drift = nn.Parameter(flow[2])

    def forward(self, x_t: Tensor, t: Tensor, cond: object, scalars: object = None) -> Prediction:
        x0 = clean_of(self.process, (self.mean, self.factor, self.drift), x_t, t)
        return Prediction.of_x0(self.process, x_t, t, x0)


def roles_of(process: Process, student: Flows, target: Flows = TARGET, teacher: Flows = TEACHER) -> Roles:
    judge, names = Judge(), ("generator", "target", "real_score")
    judge.weight.data += TILT
    networks = {name: Straight(process, flow) for name, flow in zip(names, (student, target, teacher), strict=True)}
    return Roles(networks | {"discriminator": judge}, Plan([even_grid(1)], sampler="ode"))


def drawn(count: int) -> list[Tensor]:
    return list(torch.randn(count, COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))


def batch_of() -> Batch:
    """Real samples with two draws of noise for each rng, the same at every call."""
    return scripted(*drawn(2), real=REAL.sample(COUNT, streams()["rng"]).double())


def check_the_parts(process: Process, truncated: float, reach: float = 0.2) -> None:
    """Each with its slopes by the student's mean, factor and drift, of which targets and lines have none."""
    objective, real = replace(OBJECTIVE, truncated=truncated, reach=reach), batch_of().x0
    roles, noises = roles_of(process, STUDENT), drawn(2)
    parameters = list(roles.parameters("generator"))
    with roles.training(("generator",)):
        terms = objective.generator(roles, batch_of())
        slopes = {name: torch.autograd.grad(term, parameters, retain_graph=True) for name, term in terms.items()}
    rng = streams()["rng"]
    t = objective.times.sample(process, COUNT, rng)
    low = process.from_clock(torch.zeros((), dtype=torch.float64))
    t = low + (1 - low) * t
    r = t - uniform(rng, COUNT) * (t - low).clamp(max=reach)
    q = t + uniform(rng, COUNT) * (1 - t).clamp(max=reach)
    step = Straight(process, TEACHER)(process.renoise(real, t, noises[0]), t, None)
    below, above = (clean_of(process, TARGET, step.at(s), s).detach() for s in (r, q))
    below = torch.where((r < truncated)[:, None], real, below)
    assert (r < truncated).any() != (truncated == 0)
    leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    x0 = clean_of(process, tuple(leaves), process.renoise(real, t, noises[0]), t)
    one = torch.ones(COUNT, dtype=torch.float64)
    whole = clean_of(process, tuple(leaves), process.prior(noises[0], one), one)
    end, noise = whole.detach(), (process.prior(noises[0], one) - process.alpha(one[:1]) * whole).detach()
    noise = noise / process.sigma(one[:1])
    line = process.alpha(t)[:, None] * end + process.sigma(t)[:, None] * noise
    at = torch.tensor(AT, dtype=torch.float64)
    judged = process.alpha(at) * whole + process.sigma(at) * noises[1]
    expected = {
        "consistency": (((x0 - below) ** 2 + 1e-4).sqrt() - 0.01).mean(),
        "back": 0.3 * (((x0 - above) ** 2 + 1e-4).sqrt() - 0.01).mean(),
        "straight": 0.7 * (clean_of(process, tuple(leaves), line, t) - end).square().mean(),
        "gan": 0.5 * softplus(-judged @ TILT).mean(),
    }
    close(expected["straight"], 0.7 * ((1 - t[:, None]) * STUDENT[2]).square().mean())
    for name, term in expected.items():
        close(terms[name], term.detach())
        for parameter, found in zip(leaves, slopes[name], strict=True):
            by_hand = torch.autograd.grad(term, parameter, retain_graph=True, allow_unused=True)[0]
            close(found, torch.zeros_like(found) if by_hand is None else by_hand)


def check_the_discriminator() -> None:
    """Real samples and whole jumps at the same times, with the same noises."""
    roles, real, noises = roles_of(Flow(), STUDENT), batch_of().x0, drawn(2)
    with roles.training(("discriminator",)):
        term = OBJECTIVE.discriminator(roles, batch_of())["gan"]
    fake = (1 - AT) * (OTHER_MEAN + noises[0] @ OTHER_FACTOR.T) + AT * noises[1]
    close(term.detach(), 0.2 * (softplus(-((1 - AT) * real + AT * noises[1]) @ TILT) + softplus(fake @ TILT)).mean())


@processes
@pytest.mark.parametrize(("truncated", "reach"), [(0.0, 0.2), (0.2, 0.2), (0.0, 0.9)])
def test_its_parts_are_what_they_say(process: Process, truncated: float, reach: float):
    check_the_parts(process, truncated, reach)


def check_the_target_follows() -> None:
    """It is moved before it is asked, by what its decay leaves."""
    roles = roles_of(Flow(), STUDENT, target=tuple(part.clone() for part in TARGET))
    replace(OBJECTIVE, ema=0.75).generator(roles, batch_of())
    for moved, target, student in zip(roles.parameters("target"), TARGET, STUDENT, strict=True):
        close(moved, 0.75 * target + 0.25 * student)


def test_its_target_follows():
    check_the_target_follows()


def test_without_a_decay_it_is_its_own_target():
    members = roles_of(Flow(), STUDENT, target=STUDENT).members
    own, objective = {name: role for name, role in members.items() if name != "target"}, replace(OBJECTIVE, ema=0.0)
    assert not objective.needs.target
    terms, others = (
        settings.generator(Roles(known, Plan([even_grid(1)], sampler="ode")), batch_of())
        for settings, known in ((objective, own), (OBJECTIVE, members))
    )
    close(terms, others)


def test_its_adversary_sees_whole_jumps():
    check_the_discriminator()


@processes
def test_the_student_of_a_straight_teacher_rests(process: Process):
    """Where it is the teacher's own flow all three are zero; each of them is not where it is another, or bends."""

    def left(student: Flows) -> dict[str, float]:
        objective = replace(OBJECTIVE, truncated=0.0)
        roles = roles_of(process, student, target=student)
        terms = objective.generator(roles, batch_of())
        return {name: term.item() for name, term in terms.items() if name != "gan"}

    assert max(left(TEACHER).values()) < 1e-12
    other, bent = left((OTHER_MEAN, OTHER_FACTOR, TEACHER[2])), left((MEAN, FACTOR, STUDENT[2]))
    assert min(other["consistency"], other["back"]) > 1e-4
    assert other["straight"] < 1e-12, "another straight flow does not contradict itself"
    assert min(bent.values()) > 1e-5


class Dropping(Straight):
    """Such a flow whose clean samples are moved by what each call draws, as dropout does."""

    def forward(self, x_t: Tensor, t: Tensor, cond: object, scalars: object = None) -> Prediction:
        x0 = super().forward(x_t, t, cond, scalars).x0
        return Prediction.of_x0(self.process, x_t, t, x0 + torch.randn_like(x0))


def check_masks() -> None:
    """Neighbours on the teacher's own flow agree as long as dropout does not tell them apart."""
    members = roles_of(Flow(), TEACHER, target=TEACHER).members
    dropping = {name: Dropping(Flow(), TEACHER) for name in ("generator", "target")}
    roles = Roles(members | dropping, Plan([even_grid(1)], sampler="ode"))
    terms = replace(OBJECTIVE, truncated=0.0).generator(roles, batch_of())
    assert max(terms["consistency"], terms["back"]) < 1e-12
    assert terms["straight"] > 0.1, "calls on another line have masks of their own"


def test_neighbours_are_seen_under_the_masks_of_the_student():
    check_masks()


def test_its_defaults():
    own = SelfCorrectedFlow()
    assert (own.teacher_guidance, own.times, own.ema) == (Guidance(1.5, 1.5), Uniform(0.0, 1.0), 0.9)
    assert (own.reach, own.truncated, own.back, own.straight) == (0.1, 0.1, 0.1, 0.1)
    assert (own.distance, own.huber, own.gan) == ("huber", 0.01, GAN(weight=0.1, learned=1.0, paired=True))


def test_what_it_needs():
    own = Needs(images=True, real_score=True, null=True, target=True, sampler="ode")
    assert SelfCorrectedFlow().needs == own
    assert SelfCorrectedFlow().cycle == (("generator",), ("discriminator",))
    assert SelfCorrectedFlow(gan=GAN(0.0), ema=0.0).cycle == (("generator",),)
    assert SelfCorrectedFlow(reach=1.0).reach == 1.0, "all the way"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(SelfCorrectedFlow, reach=0.0), "reach is 0"),
        (partial(SelfCorrectedFlow, truncated=1.0), "truncated 1"),
        (partial(SelfCorrectedFlow, back=-1.0), "back is -1"),
        (partial(SelfCorrectedFlow, straight=-1.0), "straight -1"),
        (partial(SelfCorrectedFlow, ema=1.0), "ema is 1"),
        (partial(SelfCorrectedFlow, gan=GAN(1.0, joint=True)), "gan.joint looks where"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


TURN, SEEN, JUMPED, JUDGED = SelfCorrectedFlow.generator, SelfCorrectedFlow._seen, scflow.jumped, scflow.judged


def bent(*, line: bool, end: bool) -> Callable[..., Tensor]:
    """The correction with a gradient through the line, or through where it leads."""

    def bend(roles: Roles, batch: object, whole: Prediction, t: Tensor, scalars: object) -> Tensor:
        held = Prediction(whole.process, whole.t, whole.x0.detach(), whole.eps.detach())
        again = through(roles.generator, (whole if line else held).at(t), t, batch.cond, scalars).x0
        return (again - (whole if end else held).x0).square().mean()

    return bend


FLOW = partial(check_the_parts, Flow(), 0.2)
MUTANTS = {
    "the student flees": Mutant.of(
        SelfCorrectedFlow, "generator", lambda *given: {name: -term for name, term in TURN(*given).items()}, FLOW
    ),
    "no weights": Mutant.of(
        SelfCorrectedFlow, "generator", lambda self, *given: TURN(replace(self, back=1.0, straight=1.0), *given), FLOW
    ),
    "neighbours see each other's end": Mutant.of(
        SelfCorrectedFlow,
        "_seen",
        lambda self, roles, batch, x, s, told: SEEN(self, roles, batch, x, 1 - s, told),
        FLOW,
    ),
    "neighbours have masks of their own": Mutant.of(scflow, "same_masks", lambda _: nullcontext(), check_masks),
    "the target stays": Mutant.of(scflow, "follow", lambda *_: None, check_the_target_follows),
    "the student is its own target": Mutant.of(Roles, "target", property(lambda roles: roles.generator), FLOW),
    "the targets have gradient": Mutant(
        [(scflow, "look", through), (Roles, "target", property(lambda roles: roles.generator))], FLOW
    ),
    "real samples are never the target": Mutant.of(
        scflow, "pad_like", lambda _near, like: torch.zeros_like(like, dtype=torch.bool), FLOW
    ),
    "the line has gradient": Mutant.of(scflow, "bend", bent(line=True, end=False), FLOW),
    "the end has gradient": Mutant.of(scflow, "bend", bent(line=False, end=True), FLOW),
    "jumps of other noises": Mutant.of(
        scflow, "jumped", lambda roles, batch, eps, told: JUMPED(roles, batch, -eps, told), FLOW
    ),
    "the adversary sees them noisy": Mutant.of(
        scflow, "judged", lambda whole: replace(JUDGED(whole), x=0.5 * whole.x0), check_the_discriminator
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
