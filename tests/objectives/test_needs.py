"""What an objective needs has typed names; a wrong one cannot be made."""

import pytest

from fastgen.models.roles import DENOISERS
from fastgen.models.state import STATES
from fastgen.objectives import OBJECTIVES, Needs, Objective, denoisers_of, roles_of
from fastgen.objectives.distribution.dmd2 import DMD2

MISSPELT = {
    "imags": {"imags": True},
    "od": {"sampler": "od"},
    "linaer": {"process": "linaer"},
    "step>=4": {"step": 4},
    "fake_scor.called": {"scalars": {"fake_scor": {"called"}}},
    "generator.called": {"scalars": {"generator": {"called"}}},
    "no steps": {"steps": 0},
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_wrong_need_cannot_be_made(name: str):
    with pytest.raises((TypeError, ValueError)):
        Needs(**MISSPELT[name])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": ">=4"}, r"needs steps='>=4': it has to be a whole number, write it as in Needs\(steps=4\)"),
        ({"steps": 2.0}, r"steps=2\.0: .* whole number"),
        ({"heads": True}, r"heads=True: .* whole number"),
        ({"images": 1}, r"images=1: it has to be True or False, write it as in Needs\(images=True\)"),
        ({"sampler": ["ode"]}, r"sampler=\['ode'\]: it has to be a name or None"),
        ({"scalars": "generator.s"}, r"scalars='generator\.s': .* as in Needs\(scalars=\{'generator': \{'s'\}\}\)"),
        ({"scalars": {"generator": "s"}}, r"scalars=\{'generator': 's'\}: .* set of names"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_value_of_another_type_is_named_with_rule_and_remedy(wrong: dict[str, object], told: str):
    with pytest.raises(ValueError, match=told):
        Needs(**wrong)


def test_an_error_names_what_there_is():
    with pytest.raises(ValueError, match=r"no roles fake_scor .* generator, fake_score, real_score, target"):
        Needs(scalars={"fake_scor": {"called"}})


def test_joined_needs_are_those_of_both():
    one = Needs(images=True, steps=2, judged_from=5, scalars={"generator": {"s"}, "target": {"s"}})
    other = Needs(null=True, steps=4, sampler="ode", scalars={"generator": {"w"}})
    both = Needs(
        images=True,
        null=True,
        steps=4,
        judged_from=5,
        sampler="ode",
        scalars={"generator": {"s", "w"}, "target": {"s"}},
    )
    assert one | other == other | one == both
    assert one | Needs() == one
    assert str(both) == "generator.s, generator.w, images, judged_from=5, null, sampler=ode, steps=4, target.s"


def test_two_samplers_cannot_be_joined():
    with pytest.raises(ValueError, match="can have but one"):
        Needs(sampler="ode") | Needs(sampler="renoise")


def test_every_state_can_be_asked_for():
    for name in STATES:
        assert Needs(**{name: True}).states == (name,)


def test_a_set_of_words_is_refused():
    class Old(DMD2):
        @property
        def needs(self):
            return frozenset({"real_score"})

    with pytest.raises(ValueError, match=r"needs of Old are a frozenset: .* Needs\(real_score=True"):
        roles_of(Old())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_roles_of_a_run_are_those_trained_and_read(name: str):
    objective: Objective = OBJECTIVES[name]()
    trained, needs = set(roles_of(objective)), objective.needs
    assert set(denoisers_of(objective)) == {*(trained & set(DENOISERS)), *needs.reads}
    assert set(needs.states) == trained & set(STATES) | ({"ratio_means"} if needs.ratio_means else set())
    assert set(needs.scalars) <= set(denoisers_of(objective))
