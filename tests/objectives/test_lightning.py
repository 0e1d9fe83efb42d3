"""SDXL-Lightning's jumps, ends and judges against plain algebra; what either stage rests at; mutants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from closed_forms import COVARIANCE, MEAN, PROCESSES, REAL, believed, close, gaussian_roles, only, processes, scripted
from mutants import Mutant
from recorder import Recorder
from torch import Tensor
from torch.nn.functional import softplus

from fastgen.models.conditioning import Conditioning
from fastgen.models.discriminator import FeatureDiscriminator
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Needs, Terms
from fastgen.objectives.adversarial import lightning
from fastgen.objectives.adversarial.lightning import Lightning
from fastgen.objectives.parts import originals
from fastgen.objectives.parts.flow_map import divided, drawn_step, edges_of
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.originals import TimedSamples
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, ExactRatio

UP, COUNT, FLOW = 0.4, 256, Flow()
JUMP = Lightning(gan=GAN(weight=0.7, learned=0.3, times=only(UP)), substeps=2)
END = replace(JUMP, judged="end")


class Reader(FeatureDiscriminator):
    """A linear judge of a jump's end and, where it is told, of its start."""

    ending, beginning = torch.tensor([[0.7, -0.4], [0.2, 0.5]], dtype=torch.float64)

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        return [torch.cat([x_t, t[:, None]], dim=1)]

    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        (seen,) = features
        weight = torch.cat([self.ending, torch.ones(1), self.beginning, torch.tensor([3.0])])
        return (seen @ weight[: seen.shape[1]].double())[:, None]


@dataclass
class Turned:
    """A turn's terms, their slope by the generator's mean, and the logits that plain algebra gives."""

    terms: Terms
    slope: Tensor | None
    real: Tensor
    fake: Tensor
    mean: Tensor


def turned(objective: Lightning, turn: str, process: Process) -> Turned:
    recorder = Recorder(gaussian_roles(process).generator)
    members = gaussian_roles(process, generator=recorder, discriminator=Reader()).members
    roles = Roles(members, Plan([even_grid(3)], sampler="ode"))
    x0, *noises = torch.randn(4, COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch, drawn = (scripted(*noises, real=x0) for _ in range(2))
    with roles.training((turn,)):
        terms, slope = getattr(objective, turn)(roles, batch), None
        if turn == "generator":
            (slope,) = torch.autograd.grad(terms["gan"], recorder.inner.mean)
    t, s = drawn_step(divided(edges_of(roles, drawn), 3 * objective.divided), drawn)
    assert {*t.tolist()} > {*s.tolist()} - {0.0}

    def levels(time: Tensor) -> tuple[Tensor, Tensor]:
        return process.alpha(time)[:, None], process.sigma(time)[:, None]

    def step(x: Tensor, x0: Tensor, at: Tensor, to: Tensor) -> Tensor:
        (a, b), (c, d) = levels(at), levels(to)
        return c * x0 + d * (x - a * x0) / b

    a, b = levels(t)
    x_t = torch.where((t == 1)[:, None], process.prior(noises[0], t), a * x0 + b * noises[0])
    (call,) = recorder.calls
    close(call.x_t, x_t)
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    fake, real = step(x_t, call.x0 + mean, t, s), x_t
    times = [t + (s - t) * i / objective.substeps for i in range(objective.substeps)] + [s]
    for at, to in pairwise(times):
        seen = [(x[None], *(y[0] for y in levels(u[None]))) for x, u in zip(real, at, strict=True)]
        real = step(real, torch.cat([believed(MEAN, COVARIANCE, *one) for one in seen]), at, to)
    judged = s + (1 - s) * UP

    def logit(x_s: Tensor, noise: Tensor) -> Tensor:
        (a, b), (c, d) = levels(s), levels(judged)
        shown = c / a * x_s + (d**2 - (c / a * b) ** 2).sqrt() * noise
        known = shown @ Reader.ending + judged
        return known if objective.judged == "end" else known + x_t @ Reader.beginning + 3 * t

    return Turned(terms, slope, logit(real, noises[2]), logit(fake, noises[1]), mean)


def check_generator(objective: Lightning = JUMP, process: Process = FLOW) -> None:
    """0.7 softplus(-D) of the student's own end, which alone has gradient."""
    found = turned(objective, "generator", process)
    paid = 0.7 * softplus(-found.fake).mean()
    close(found.terms["gan"], paid, tolerance=1e-5)
    close(found.slope, torch.autograd.grad(paid, found.mean)[0], tolerance=1e-5)


def check_discriminator(objective: Lightning = JUMP, process: Process = FLOW) -> None:
    """0.3 (softplus(-D) of the teacher's ends and softplus(D) of the student's)."""
    found = turned(objective, "discriminator", process)
    close(found.terms["gan"], 0.3 * (softplus(-found.real).mean() + softplus(found.fake).mean()), tolerance=1e-5)


@pytest.mark.usefixtures("unchecked")
@processes
@pytest.mark.parametrize("objective", [JUMP, END, replace(JUMP, divided=2, substeps=4)], ids=["jump", "end", "early"])
def test_the_students_jump_is_told_from_the_teachers_steps(objective: Lightning, process: Process):
    check_generator(objective, process)
    check_discriminator(objective, process)


ONE = Plan([even_grid(1)], sampler="ode")


def taught(z: Tensor) -> Tensor:
    """Where two steps of the exact teacher lead from pure noise on the flow, an affine map."""
    half = torch.full((), 0.5, dtype=torch.float64)
    x = 0.5 * z + 0.5 * MEAN
    x0 = believed(MEAN, COVARIANCE, x, half, half)
    return x0 + 0.0 * x


def affine(turn_by: float = 0.0) -> AffineGenerator:
    """The student that ends there, of noise turned by an angle."""
    angle = torch.tensor(turn_by, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    starts = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    ends = taught(starts)
    return AffineGenerator(FLOW, ends[0], (ends[1:] - ends[0]).T @ turn)


class KnownJump(FeatureDiscriminator):
    """The optimal judge of noisy ends of one start: both are Gaussians about where teacher and student lead."""

    def __init__(self, student: AffineGenerator) -> None:
        super().__init__()
        self._mean, self._factor = student.mean.detach(), student.factor.detach()

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        return [x_t]

    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        shown, start = features[0].chunk(2, dim=1)
        ends = taught(start), self._mean + start @ self._factor.T
        real, fake = (-((shown - (1 - UP) * end) ** 2).sum(dim=1) / (2 * UP**2) for end in ends)
        return (real - fake)[:, None]


def pulled(objective: Lightning, student: AffineGenerator) -> Tensor:
    """The gradient [6] under the stage's optimal judge, over many starts."""
    law = student.law()
    ends = affine().law()
    judge = (
        KnownJump(student) if objective.judged == "jump" else ExactRatio(*(ExactDenoiser(FLOW, x) for x in (ends, law)))
    )
    roles = Roles({"generator": student, "real_score": ExactDenoiser(FLOW, REAL), "discriminator": judge}, ONE)
    z, n = torch.randn(2, 8192, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with roles.training(("generator",)):
        term = objective.generator(roles, scripted(z, n, real=z))["gan"]
        slopes = torch.autograd.grad(term, [student.mean, student.factor])
    return torch.cat([slope.flatten() for slope in slopes])


def check_what_rests() -> None:
    """The teacher's own map moves nothing; one from other starts to the same law moves whole jumps alone."""
    away = AffineGenerator(FLOW, torch.tensor([0.9, 0.1]), torch.tensor([[1.1, 0.0], [-0.4, 0.7]]))
    strength = {one.judged: pulled(one, away).norm() for one in (JUMP, END)}
    for one in (JUMP, END):
        assert pulled(one, affine()).norm() < 1e-9 * strength[one.judged]
    assert pulled(END, affine(0.8)).norm() < 0.03 * strength["end"], "another way to the same law"
    moved = pulled(JUMP, affine(0.8))
    assert moved.norm() > 0.2 * strength["jump"]


def check_whole_jumps_near_the_teachers() -> None:
    """A step downhill lowers the mean squared distance of the ends from one start."""
    for student in (affine(0.8), AffineGenerator(FLOW, torch.tensor([0.9, 0.1]), torch.eye(2))):
        z = torch.randn(4096, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        gap = (student.mean + z @ student.factor.T - taught(z)).square().sum(dim=1).mean()
        by = torch.cat([x.flatten() for x in torch.autograd.grad(gap, [student.mean, student.factor])])
        pull = pulled(JUMP, student)
        assert by @ pull > 0.5 * by.norm() * pull.norm()


def test_the_whole_jump_rests_on_the_teachers_trajectory_alone_and_the_end_on_any_to_its_law():
    check_what_rests()


def test_whole_jumps_near_the_teachers():
    check_whole_jumps_near_the_teachers()


def test_what_it_needs():
    own = Needs(images=True, real_score=True, sampler="ode")
    assert Lightning().needs == own | Needs(jumps=True)
    assert Lightning(judged="end").needs == own
    assert Lightning(ratio=2).cycle == (("generator",), *2 * (("discriminator",),))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gan": GAN(0.0)}, "gan.weight is 0"),
        ({"gan": GAN(1.0, start=5)}, "gan.start 5"),
        ({"gan": GAN(1.0, joint=True)}, "two scores are compared"),
        ({"gan": GAN(1.0, pixels=True)}, "gan.pixels judges clean samples"),
        ({"substeps": 1}, "substeps 1"),
        ({"divided": 0}, "divided is 0"),
        ({"ratio": 0}, "ratio is 0"),
        ({"teacher_guidance": lightning.Guidance(2.0, 2.0, told=True)}, "teacher_guidance.told"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        Lightning(**settings)


TERMS, LOSSES, STEPS, JUDGE = (
    *(lightning.generator_terms, lightning.discriminator_losses, lightning.ddim),
    originals.JumpDiscriminator,
)


def swapped(gan: GAN, roles: Roles, batch: object, landing: object, **named: object) -> Terms:
    """The student's ends for the teacher's."""
    x, _ = named["originals"].rows(roles, batch, landing)
    taken = replace(named["originals"], rows=lambda *_: TimedSamples(landing.x, landing.s))
    return LOSSES(gan, roles, batch, replace(landing, x=x), originals=taken)


def of_lightning(name: str, wrong: object, check: Callable[[], None]) -> Mutant:
    return Mutant.of(lightning, name, wrong, check)


MUTANTS = {
    "the generator flees": of_lightning(
        "generator_terms",
        lambda *given, **named: {"gan": -TERMS(*given, **named)["gan"]},
        check_whole_jumps_near_the_teachers,
    ),
    "half the weight": of_lightning(
        "generator_terms", lambda *given, **named: {"gan": TERMS(*given, **named)["gan"] / 2}, check_generator
    ),
    "students for teachers": of_lightning("discriminator_losses", swapped, check_discriminator),
    "one step of the teacher": of_lightning(
        "ddim", lambda *given, substeps: STEPS(*given, substeps=1), check_discriminator
    ),
    "the teacher starts elsewhere": of_lightning(
        "ddim", lambda field, x, *given, **named: STEPS(field, x + 1, *given, **named), check_discriminator
    ),
    "never pure noise": of_lightning(
        "pad_like", lambda mask, x: torch.zeros_like(x) > 0, partial(check_generator, JUMP, PROCESSES["vp"])
    ),
    "starts of others": Mutant.of(
        originals,
        "JumpDiscriminator",
        lambda judge, x_t, *given: JUDGE(judge, x_t.roll(1, 0), *given),
        check_what_rests,
    ),
    "starts at another time": Mutant.of(
        originals, "JumpDiscriminator", lambda judge, x_t, t, cond: JUDGE(judge, x_t, t / 2, cond), check_generator
    ),
    "ends alone": Mutant.of(originals, "JumpDiscriminator", lambda judge, *_: judge, check_generator),
    "ends at other times": of_lightning(
        "TimedSamples", lambda x, s: TimedSamples(x, s / 2), partial(check_discriminator, JUMP, PROCESSES["vp"])
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
