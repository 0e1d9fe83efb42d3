"""Classes of a family are abstract or final, and nothing that a family says is overridden by a paper."""

import inspect
from abc import ABC
from dataclasses import dataclass

import pytest

from fastgen.objectives import OBJECTIVES, AnyGuidance, DirectionMatching
from fastgen.objectives.parts.matching import Matching

PAPERS = {name: kind for name, kind in OBJECTIVES.items() if issubclass(kind, ABC)}


def is_final(thing: object) -> bool:
    """By typing's mark, of a class, a method or a property."""
    return getattr(thing, "__final__", False) or getattr(getattr(thing, "fget", None), "__final__", False)


def test_every_objective_that_compares_scores_is_of_the_family():
    assert {name for name, kind in OBJECTIVES.items() if isinstance(kind(), Matching)} == {
        name for name in PAPERS if name not in ("pcm", "tscd", "tdd")
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
