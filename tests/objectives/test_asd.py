"""ASD: what is held against what, by which loss, against plain algebra, and made wrong on purpose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from adversaries import TILT, Judge
from closed_forms import OTHER_FACTOR, OTHER_MEAN, close, gaussian_roles, only, scripted, streams
from mutants import Mutant
from torch import Tensor
from torch.nn.functional import sigmoid, softplus

from fastgen.models import walk
from fastgen.models.calls import through
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Needs, Terms
from fastgen.objectives.distribution import asd
from fastgen.objectives.distribution.asd import SELF, AdversarialSelfDistillation
from fastgen.objectives.parts import gan, matching
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.objectives.parts.originals import DATA, TimedSamples
from fastgen.process import Flow

STOPS = {1: [1.0], 2: [1.0, 0.5], 4: [1.0, 0.8, 0.6, 0.3]}
AT, COUNT = 0.6, 64
OBJECTIVE = AdversarialSelfDistillation(guidance=Fixed(1.0), gan=replace(SELF, weight=0.7, learned=0.3, times=only(AT)))


@dataclass
class Turned:
    """A turn's terms, the slope of the GAN term by the generator's mean, and what the plain algebra says of it."""

    calls: int
    terms: Terms
    slope: Tensor | None
    fake: Tensor
    real: Tensor
    noises: Iterator[Tensor]


def made(grid: list[float], noises: Iterator[Tensor], calls: int) -> Tensor:
    """The clean sample of so many calls of an affine generator on a grid of the flow, renoised between them."""
    x_t = next(noises)
    for following in [*grid[1:calls], 0.0]:
        x0 = OTHER_MEAN + x_t @ OTHER_FACTOR.T
        x_t = (1 - following) * x0 + following * next(noises) if following else x0
    return x_t


def drawn(seed: int) -> tuple[list[float], int]:
    """The grid and the number of calls that a rollout draws."""
    rng = streams(seed)["shared_rng"]
    grid = list(STOPS.values())[int(torch.randint(3, (), generator=rng))]
    return grid, 1 + int(torch.randint(len(grid), (), generator=rng))


def turned(turn: tuple[str, ...], seed: int) -> Turned:
    judge = Judge()
    judge.weight.data += TILT
    members = gaussian_roles(Flow(), discriminator=judge).members
    roles = Roles(members, Plan([torch.tensor(stops, dtype=torch.float64) for stops in STOPS.values()]))
    script = list(torch.randn(20, COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    batch, noises = scripted(*script, seed=seed, real=torch.ones(COUNT, 2, dtype=torch.float64)), iter(script)
    with roles.training(turn):
        terms, slope = getattr(OBJECTIVE, turn[0])(roles, batch), None
        if "generator" in turn and terms["gan"].requires_grad:
            (slope,) = torch.autograd.grad(terms["gan"], roles.generator.mean)
    grid, calls = drawn(seed)
    fake = made(grid, noises, calls)
    next(noises)  # where the scores look
    fake = (1 - AT) * fake + AT * next(noises)
    more = next((stops for count, stops in STOPS.items() if count > calls), STOPS[4])
    real = (1 - AT) * made(more, noises, len(more)) + AT * next(noises)
    return Turned(calls, terms, slope, fake, real, noises)


def check_generator() -> None:
    """0.7 softplus(D(real) - D(fake)), of which the fake sample's last call alone has gradient."""
    seen = set()
    for seed in range(30):
        found = turned(("generator",), seed)
        seen.add(found.calls)
        if found.calls == 4:
            assert found.terms["gan"] == 0
            continue
        apart = (found.real - found.fake) @ TILT
        close(found.terms["gan"], 0.7 * softplus(apart).mean(), tolerance=1e-6)
        close(found.slope, -0.7 * (1 - AT) * sigmoid(apart).mean() * TILT, tolerance=1e-6)
    assert seen == {1, 2, 3, 4}


def check_discriminator() -> None:
    """0.3 (softplus(D(fake) - D(real)) and 600 times the squared change over a spread of 0.05, at either)."""
    for seed in range(6):
        found = turned(("fake_score", "discriminator"), seed)
        close(found.terms["gan"], 0.3 * softplus((found.fake - found.real) @ TILT).mean(), tolerance=1e-6)
        for term in ("r1", "r2"):
            change = 0.05 * next(found.noises) @ TILT
            close(found.terms[term], 0.3 * 600 * change.square().mean(), tolerance=1e-6)


def test_few_steps_are_to_be_taken_for_more():
    check_generator()


def test_the_discriminator_tells_few_steps_from_more():
    check_discriminator()


def test_it_needs_no_images_but_several_steps():
    assert AdversarialSelfDistillation().needs | Needs(null=True) == Needs(real_score=True, null=True, longest=2)
    assert AdversarialSelfDistillation().cycle == (("generator",), *5 * (("fake_score", "discriminator"),))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(AdversarialSelfDistillation, gan=gan.GAN(0.0)), "gan.weight is 0"),
        (partial(AdversarialSelfDistillation, rollout="one_step"), "rollout is one_step"),
        (partial(gan.GAN, approximate_r2=-1.0), "gan.approximate_r2 is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


TERMS, LOSSES, MOVED = asd.generator_terms, matching.discriminator_losses, gan.moved


def swapped(settings: gan.GAN, roles: Roles, batch: object, landing: object, *given: object, **named: object) -> Terms:
    """Few steps in the place of more."""
    x, _ = named["originals"].rows(roles, batch, landing)
    taken = replace(named["originals"], rows=lambda *_: TimedSamples(landing.x))
    return LOSSES(settings, roles, batch, replace(landing, x=x), *given, originals=taken)


MUTANTS = {
    "the generator flees": Mutant.of(
        asd, "generator_terms", lambda *given, **named: {"gan": -TERMS(*given, **named)["gan"]}, check_generator
    ),
    "held against data": Mutant.of(AdversarialSelfDistillation, "originals", DATA, check_generator),
    "taught against data": Mutant.of(AdversarialSelfDistillation, "originals", DATA, check_discriminator),
    "held against the longest": Mutant.of(
        asd, "longer", lambda roles, calls: roles.plan.grids[-1], check_discriminator
    ),
    "held against as many": Mutant.of(
        asd,
        "longer",
        lambda roles, calls: LONGER(roles, calls - 1),
        check_discriminator,
    ),
    "real samples have gradient": Mutant.of(walk, "look", through, check_generator),
    "real for generated": Mutant.of(matching, "discriminator_losses", swapped, check_discriminator),
    "half the slope": Mutant.of(
        gan, "moved", lambda *given, spread: MOVED(*given, spread=spread) / 2, check_discriminator
    ),
    "a first step every time": Mutant.of(
        asd, "sampled", lambda *given, depth: SAMPLED(*given, depth=1), check_discriminator
    ),
}
LONGER, SAMPLED = asd.longer, asd.sampled


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
