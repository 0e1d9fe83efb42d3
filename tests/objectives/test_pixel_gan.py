"""An adversary of clean samples, the slope of its heads, and ADD's distance beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from adversaries import TILT, Judge
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    believed,
    clean,
    close,
    gaussian_roles,
    only,
    processes,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from mutants import Mutant
from torch import Tensor, nn

from fastgen.models.discriminator import FeatureDiscriminator
from fastgen.objectives import Batch
from fastgen.objectives.adversarial import add as module
from fastgen.objectives.adversarial.add import ADD
from fastgen.objectives.adversarial.gdd import GDD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.sida import SiDA
from fastgen.objectives.parts import gan as parts
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.process import Flow, Process
from fastgen.proofs.gaussians import gaussian_checks

PIXELS = GAN(0.7, learned=0.3, kind="hinge", pixels=True)


# Where it looks


@pytest.mark.parametrize("objective", [DMD2(gan=PIXELS), SiDA(gan=PIXELS), ADD(gan=PIXELS, rollout="one_step")])
def test_clean_samples_are_judged(objective: DMD2 | SiDA | ADD):
    judge, real = Judge().float(), torch.randn(64, 2)
    judge.weight.data += TILT
    roles = gaussian_roles(Flow(), discriminator=judge)
    batch = replace(Batch(REAL.uncond(64), (2,), **streams()), real=real)
    term = objective.generator(roles, batch)["gan"]
    made = batch.landing.x0
    assert objective.needs.pixels
    assert not judge.t.any()
    close(judge.x_t, made)
    if not isinstance(objective, SiDA):  # which weighs each sample
        close(term, -0.7 * (made @ TILT.float()).mean())
    getattr(objective, objective.cycle[1][0])(roles, batch)
    close(judge.x_t, torch.cat([real, made]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GAN(pixels=True, times=only(0.5)), "gan.times is .*, but gan.pixels is true"),
        (lambda: GAN(pixels=True, joint=True), "gan.joint is True, but gan.pixels is true"),
        (lambda: GAN(pixels=True, paired=True), "gan.paired is True, but gan.pixels is true"),
        (lambda: GAN(pixels=True, r1=1.0), "set gan.feature_r1"),
        (lambda: GAN(feature_r1=-1.0), "feature_r1 is -1"),
        (lambda: FDistill(gan=GAN(pixels=True)), "noisy ones are compared"),
        (lambda: PhasedConsistency(gan=PIXELS), "noisy ones are compared"),
        (lambda: GDD(gan=GAN(1.0)), "gan.pixels is false"),
        (lambda: ADD(distillation=-1.0), "distillation is -1"),
        (lambda: ADD(teacher_guidance=Guidance(2.0, 3.0, told=True)), "told is true"),
    ],
)
def test_settings_that_cannot_work_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def test_of_derivatives_too_an_adversary_may_judge_pixels():
    assert SanaSprint(gan=PIXELS).needs.pixels


# The slope of the heads


class Bent(FeatureDiscriminator):
    """Of features x and 2 x the logits w.f + 0.3 |f|^2 / 2; large enough a network before it would show in a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(TILT.clone())

    def features(self, x_t: Tensor, t: Tensor, cond: object) -> list[Tensor]:
        return [x_t, 2 * x_t]

    def judged(self, features: Sequence[Tensor], cond: object) -> Tensor:
        return torch.stack([f @ self.weight + 0.15 * f.square().sum(dim=1) for f in features], dim=1)


def check_heads() -> None:
    """learned gamma / 2 sum_k mean|w + 0.3 f_k|^2 of real samples, and its slope by w."""
    real, judge = torch.randn(64, 2, dtype=torch.float64), Bent()
    batch = replace(Batch(REAL.uncond(64), (2,), **streams()), real=real)
    batch.landing = clean(batch, real + 3)
    gan = GAN(learned=0.2, pixels=True, feature_r1=5.0)
    roles = gaussian_roles(Flow(), discriminator=judge)
    with roles.training(("discriminator",)):
        terms = ADD(gan=gan).discriminator(roles, batch)
        (slope,) = torch.autograd.grad(terms["feature_r1"], judge.weight)
    gradients = [judge.weight.detach() + 0.3 * f for f in (real, 2 * real)]
    close(terms["feature_r1"], 0.2 * 2.5 * sum(g.square().sum(dim=1).mean() for g in gradients))
    close(slope, 0.2 * 5.0 * sum(g.mean(dim=0) for g in gradients))
    plain = ADD(gan=replace(gan, feature_r1=0.0)).discriminator(roles, batch)
    close(plain["gan"], terms["gan"])


def test_the_slope_of_the_heads_is_half_gamma_times_its_square():
    check_heads()


# ADD's distance


def check_distance(process: Process = Flow(), at: float = 0.6) -> None:  # noqa: B008 - immutable
    """2 lambda c (x0 - E[x0 | x_t]) / d, with c the alpha that goes with sigma so that their squares sum to 1."""
    z, eps = quasi_random(2, 512)
    judge = Judge()
    objective = ADD(gan=PIXELS, rollout="one_step", distillation=1.5, times=only(at))
    measured = slopes(gaussian_roles(process, discriminator=judge), objective, scripted(z, eps), "distillation")
    t = torch.tensor(at, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = OTHER_MEAN + z @ OTHER_FACTOR.T
    aim = believed(MEAN, COVARIANCE, alpha * x0 + sigma * eps, alpha, sigma)
    grad = 1.5 * (alpha / torch.hypot(alpha, sigma)) * (x0 - aim)
    close(measured, (grad.mean(dim=0), grad.T @ z / len(z)))


@processes
@pytest.mark.parametrize("at", [0.3, 0.6])
def test_the_distance_is_to_what_the_teacher_makes_of_renoised_samples(process: Process, at: float):
    check_distance(process, at)


def check_without_distance() -> None:
    """A perfect adversary of clean samples leads to the data, and rests there."""
    logistic = replace(PIXELS, kind="logistic")
    checks = gaussian_checks(ADD(gan=logistic, rollout="one_step", distillation=0.0), "flow")
    assert all(check.holds for check in checks), checks


def check_alone(process: str = "flow") -> None:
    """GDD, at its defaults but for the slope of heads that a perfect adversary has not."""
    checks = gaussian_checks(GDD(gan=replace(GDD().gan, feature_r1=0.0)), process)
    assert all(check.holds for check in checks), checks


@pytest.mark.parametrize("process", ["flow", "vp", "edm", "trig"])
def test_gdd_leads_to_the_data_by_its_adversary_alone(process: str):
    check_alone(process)
    assert not GDD().needs.real_score


def test_a_perfect_adversary_of_clean_samples_leads_to_the_data_and_rests_there():
    check_without_distance()


PAD, CLEAN, SLOPE, NOISED, READ = module.pad_like, parts._clean, parts.slope_of_heads, module.renoised, parts._read


def exchanged(logits: Tensor, read: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return logits.roll(len(logits) // 2, 0), read


MUTANTS = {
    "GDD away from the data": Mutant.of(
        parts, "_clean", lambda roles, batch, x: CLEAN(roles, batch, 2 * x.detach() - x), check_alone
    ),
    "weighed by c squared": Mutant.of(module, "pad_like", lambda weight, like: PAD(weight**2, like), check_distance),
    "renoised elsewhere": Mutant.of(
        module, "renoised", lambda *given, law: NOISED(*given, law=only(0.5)), check_distance
    ),
    "guided": Mutant.of(
        Guidance, "field", lambda _, roles, batch: lambda x, t: roles.fake_score(x, t, batch.cond), check_distance
    ),
    "heads of generated samples": Mutant.of(parts, "_read", lambda *given: exchanged(*READ(*given)), check_heads),
    "gamma, not its half": Mutant.of(parts, "slope_of_heads", lambda *given: 2 * SLOPE(*given), check_heads),
    "detached heads": Mutant.of(
        parts, "slope_of_heads", lambda *given: SLOPE(*given).detach() + 0 * given[0].sum(), check_heads
    ),
    "away from what the judge wants": Mutant.of(
        parts, "_clean", lambda roles, batch, x: CLEAN(roles, batch, 2 * x.detach() - x), check_without_distance
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
