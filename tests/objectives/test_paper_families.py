"""Classes of a family are abstract or final, and nothing that a family says is overridden by a paper."""

import inspect
from abc import ABC
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pytest
import torch
from closed_forms import PLANE, close, only, streams

from fastgen.models.roles import Roles
from fastgen.objectives import OBJECTIVES, AnyGuidance, Batch, DirectionMatching, Landing, Needs, PhasedDMD
from fastgen.objectives.parts.adversarial import AdversarialConsistency, ComparedJumps
from fastgen.objectives.parts.adversarial_distillation import AdversarialDistillation
from fastgen.objectives.parts.flow_map import Jumps
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.matching import Matching, fake_terms
from fastgen.objectives.parts.mean_velocity import MeanVelocity
from fastgen.objectives.parts.ops import Noised
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

PAPERS = {name: kind for name, kind in OBJECTIVES.items() if issubclass(kind, ABC)}

OTHERS = AdversarialConsistency | AdversarialDistillation | MeanVelocity


def is_final(thing: object) -> bool:
    """By typing's mark, of a class, a method, a property or one that is kept."""
    said = thing.fget if isinstance(thing, property) else thing.func if isinstance(thing, cached_property) else thing
    return getattr(said, "__final__", False)


def test_every_objective_that_compares_scores_is_of_the_family():
    assert {name for name, kind in OBJECTIVES.items() if isinstance(kind(), Matching)} == {
        name for name, kind in PAPERS.items() if not issubclass(kind, OTHERS)
    }


@pytest.mark.parametrize("name", PAPERS)
def test_a_class_is_abstract_or_final(name: str):
    kind = PAPERS[name]
    *above, _abc, _object = kind.__mro__[1:]
    assert vars(kind).get("__final__"), "a paper is derived from by nobody"
    assert all(inspect.isabstract(base) and not vars(base).get("__final__") for base in above)


@pytest.mark.parametrize("name", PAPERS)
def test_what_a_family_says_is_final_and_said_once(name: str):
    for attribute in ("cycle", "needs", "fake_score", "discriminator", "__post_init__"):
        sayers = [base for base in PAPERS[name].__mro__ if attribute in vars(base)]
        assert len(sayers) < 2, f"{attribute} is said by {sayers}"
        assert all(is_final(vars(base)[attribute]) for base in sayers)


def test_a_setting_without_default_is_told():
    @dataclass(frozen=True)
    class Mine(DirectionMatching):
        guidance: AnyGuidance
        rollout: str = "one_step"

        def direction(self, roles, batch, scores, x0):
            return x0

    with pytest.raises(TypeError, match=r"abstract class Mine .*guidance"):
        Mine()


def test_even_errors_count_the_same_where_little_of_the_noise_is_known():
    process, landed, t = Flow(), 0.5, 0.6
    weighed = {}
    for even in (True, False):
        objective = PhasedDMD(even=even, fake_times=only((t - landed) / (1 - landed)))
        roles = toy_roles(process, PLANE, [even_grid(4)], updates=0, objective=objective, sampler="ode")
        batch = toy_batch(PLANE, 64, *streams().values())
        landing = Landing(batch.x0, batch.full(landed), batch.full(1.0), batch.x0)
        weighed[even] = fake_terms(objective, roles, batch, landing)["denoise"]
    known = Noised.of(process, batch.x0, batch.full(t), batch.noise(), s=batch.full(landed)).precision[0]
    assert known < 0.9
    close(weighed[False], (known * weighed[True]).float(), tolerance=1e-5)


@dataclass(frozen=True)
class Still(AdversarialConsistency):
    """Jumps that end at a known time, apart by one, judged a little above it."""

    ema: ClassVar[float] = 0.0

    @property
    def also(self) -> Needs:
        return Needs()

    def compared(self, roles: Roles, batch: Batch) -> ComparedJumps:
        return ComparedJumps(Jumps(batch.x0 + 1, batch.x0, batch.full(0.2)), batch.full(0.3))


def judged_turn(turn: str, weight: float) -> tuple[dict[str, float], torch.Tensor]:
    """The terms of a turn, and the times at which the adversary looked."""
    roles = toy_roles(Flow(), PLANE, [even_grid(4)], updates=0)
    times: list[torch.Tensor] = []
    roles.discriminator.register_forward_pre_hook(lambda _module, given: times.append(given[1]))
    objective = Still(gan=GAN(weight, learned=0.7, kind="hinge"))
    terms = getattr(objective, turn)(roles, toy_batch(PLANE, 64, *streams().values()))
    return {name: term.item() for name, term in terms.items()}, torch.cat(times)


@pytest.mark.parametrize("turn", ["generator", "discriminator"])
def test_an_adversary_looks_between_the_jumps_end_and_what_the_paper_says(turn: str):
    _, times = judged_turn(turn, 0.1)
    assert 0.2 < times.min() < 0.22
    assert 0.28 < times.max() <= 0.3


def test_the_generator_pays_the_adversary_by_its_weight():
    (one, _), (two, _) = judged_turn("generator", 0.1), judged_turn("generator", 0.2)
    assert one["gan"] > 0
    assert two["gan"] == pytest.approx(2 * one["gan"])
    assert two["consistency"] == one["consistency"]
