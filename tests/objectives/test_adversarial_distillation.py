"""LADD and its kin: who is told from whom, in which direction the generator goes, and each made wrong on purpose."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from adversaries import TILT, Judge
from closed_forms import close, gaussian_roles, only, scripted
from mutants import Mutant
from recorder import Recorder
from torch import Tensor
from torch.nn.functional import relu

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Pair
from fastgen.objectives.adversarial.apt import APT
from fastgen.objectives.adversarial.ladd import LADD
from fastgen.objectives.parts import adversarial_distillation as family
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Flow
from fastgen.proofs.gaussians import gaussian_checks

HINGE = GAN(0.7, learned=0.3, kind="hinge", times=only(0.6))
AT = 0.5
SIZE = 512


class Seen(NamedTuple):
    """A turn's term, and what the generator and the discriminator were shown."""

    term: Tensor
    call: Tensor
    judged: Tensor
    made: Tensor


def seen(objective: LADD, turn: str, *noises: Tensor, pairs: Pair, real: Tensor, term: str = "gan") -> Seen:
    """Of a student of the one time 0.5, which is not the process's last."""
    judge = Judge()
    judge.weight.data += TILT
    generator = Recorder(gaussian_roles(Flow())["generator"])
    members = gaussian_roles(Flow(), discriminator=judge, generator=generator).members
    roles = Roles(members, Plan([torch.tensor([1.0, AT], dtype=torch.float64)]))
    batch = replace(scripted(*noises, real=real), pairs=pairs)
    batch.shared_rng.manual_seed(at_the_second_stop())
    value = getattr(objective, turn)(roles, batch)[term]
    (call,) = generator.calls
    return Seen(value.detach(), call.x_t, judge.x_t, call.x0)


def at_the_second_stop() -> int:
    """A seed whose second draw of two, after that of the grid, is the second."""
    for seed in range(99):
        rng = torch.Generator().manual_seed(seed)
        _, depth = (int(torch.randint(most, (), generator=rng)) for most in (1, 2))
        if depth:
            return seed
    raise AssertionError


def drawn(seed: int = 0) -> list[Tensor]:
    return list(torch.randn(6, SIZE, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def check_generator(kind: str = "teacher") -> None:
    """-0.7 w.x_t: samples of the noised real ones, of the teacher's or of the data, are renoised and judged."""
    images, ends, z, eps, *_ = drawn()
    found = seen(LADD(gan=HINGE, real=kind), "generator", z, eps, pairs=Pair(z, ends), real=images)
    start = ends if kind == "teacher" else images
    close(found.call, (1 - AT) * start + AT * z)
    close(found.judged, 0.4 * found.made + 0.6 * eps)
    close(found.term, -0.7 * (found.judged @ TILT).mean())


def check_discriminator(kind: str = "teacher") -> None:
    """0.3 (relu(1 - D) of real samples + relu(1 + D) of generated ones), each with a noise of its own."""
    images, ends, *noises = drawn()
    found = seen(LADD(gan=HINGE, real=kind), "discriminator", *noises, pairs=Pair(noises[0], ends), real=images)
    real, fake = (
        0.4 * x + 0.6 * n for x, n in ((ends if kind == "teacher" else images, noises[2]), (found.made, noises[1]))
    )
    close(found.judged, torch.cat([real, fake]))
    close(found.term, 0.3 * (relu(1 - real @ TILT).mean() + relu(1 + fake @ TILT).mean()))


@pytest.mark.parametrize("kind", ["teacher", "images"])
def test_the_generator_starts_from_real_samples_and_is_judged_renoised(kind: str):
    check_generator(kind)


@pytest.mark.parametrize("kind", ["teacher", "images"])
def test_the_discriminator_tells_real_from_generated_samples(kind: str):
    check_discriminator(kind)


def check_between_gaussians(process: str = "flow") -> None:
    """With the discriminator's optimum: the KL divergence falls, and nothing moves where the student is the teacher."""
    logistic = replace(HINGE, kind="logistic")
    checks = gaussian_checks(LADD(gan=logistic, rollout="one_step"), process)
    assert all(check.holds for check in checks), checks


@pytest.mark.parametrize("process", ["flow", "vp", "edm", "trig"])
def test_a_perfect_adversary_leads_to_the_data_and_rests_there(process: str):
    check_between_gaussians(process)


@pytest.mark.parametrize("process", ["flow", "vp", "edm", "trig"])
def test_apt_leads_to_the_data_by_its_adversary_alone(process: str):
    checks = gaussian_checks(APT(), process)
    assert all(check.holds for check in checks), checks


def check_slope() -> None:
    """0.3 of 100 (D(x_t) - D(x_t + 0.1 n))^2 at the noised real samples."""
    images, ends, *noises = drawn()
    gan = replace(HINGE, approximate_r1=100.0, spread=0.1)
    found = seen(LADD(gan=gan, real="images"), "discriminator", *noises, pairs=Pair(ends, ends), real=images, term="r1")
    close(found.term, 0.3 * 100 * (0.1 * noises[3] @ TILT).square().mean())


def test_the_slope_at_real_samples_is_a_difference():
    check_slope()


def test_the_teachers_samples_need_no_images_and_images_no_pairs():
    assert (LADD().needs.images, LADD().needs.pairs) == (False, True)
    assert (LADD(real="images").needs.images, LADD(real="images").needs.pairs) == (True, False)
    assert LADD(ratio=3).cycle == (("generator",), *3 * (("discriminator",),))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gan": GAN(0.0)}, "gan.weight is 0"),
        ({"gan": GAN(start=5)}, "gan.start is 5"),
        ({"gan": GAN(joint=True)}, "two scores are compared"),
        ({"ratio": 0}, "ratio is 0"),
    ],
)
def test_an_adversary_that_cannot_act_is_refused(settings: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        LADD(**settings)


TERMS, LOSSES = family.generator_terms, family.discriminator_losses


def swapped(gan: GAN, roles: Roles, batch: object, landing: object) -> dict[str, Tensor]:
    """Generated samples in the place of the real ones."""
    real, batch.real = batch.real, landing.x
    return LOSSES(gan, roles, batch, replace(landing, x=real))


def mutant(name: str, wrong: object, check: Callable[[], None]) -> Mutant:
    return Mutant.of(family, name, wrong, check)


MUTANTS = {
    "half the slope": mutant(
        "discriminator_losses", lambda gan, *given: LOSSES(replace(gan, spread=gan.spread / 2), *given), check_slope
    ),
    "the generator flees": mutant(
        "generator_terms", lambda *given: {"gan": -TERMS(*given)["gan"]}, check_between_gaussians
    ),
    "half the weight": mutant("generator_terms", lambda *given: {"gan": TERMS(*given)["gan"] / 2}, check_generator),
    "judged as the generator made them": mutant(
        "generator_terms",
        lambda gan, *given: TERMS(replace(gan, times=only(1e-6)), *given),
        check_generator,
    ),
    "real for generated": mutant("discriminator_losses", swapped, check_discriminator),
    "from noise alone": mutant("land", lambda _, roles, batch: LAND("one_step", roles, batch), check_generator),
    "images for the teacher's samples": Mutant.of(LADD, "_shown", lambda *_: None, check_generator),
    "no gradient": mutant("land", lambda *given: LAND(*given).detach(), check_between_gaussians),
}
LAND = family.land


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
