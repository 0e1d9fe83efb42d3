"""rCM is DMD's direction beside sCM's tangents, and made wrong on purpose."""

from dataclasses import replace

import pytest
from closed_forms import PLANE, close, streams
from mutants import Mutant

from fastgen.models.roles import Roles
from fastgen.objectives import DMD2, Fixed
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.ops import surrogate
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import rcm
from fastgen.objectives.trajectory.rcm import RegularisedConsistency
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

OBJECTIVE = RegularisedConsistency(guidance=Fixed(2.0))
DIRECTION = DMD2(gan=GAN(0.0), guidance=Fixed(2.0), times=OBJECTIVE.times)
IMAGES = 500_000


def slopes(objective: object, roles: Roles, *, seed: int = 0, term: str) -> list[object]:
    batch = replace(toy_batch(PLANE, 16, *streams(seed).values()), images=IMAGES)
    with roles.training(("generator",)):
        objective.generator(roles, batch)[term].backward()
    found = [parameter.grad.clone() for parameter in roles.parameters("generator")]
    roles["generator"].zero_grad()
    return found


def check_both_terms() -> None:
    """Each by itself, on the draws that the other leaves; 100 times the mean of the tangents' errors."""
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=20, objective=OBJECTIVE)
    close(slopes(OBJECTIVE, roles, term="dm"), slopes(DIRECTION, roles, term="dm"), tolerance=1e-5)

    class After(SimplifiedConsistency):
        """sCM on what is left of the draws."""

        def generator(self, roles: Roles, batch: object) -> dict[str, object]:
            DIRECTION.generator(roles, batch)
            return {"tangent": 100 * super().generator(roles, batch)["tangent"]}

    alone = After(**vars(OBJECTIVE.consistency))
    close(slopes(OBJECTIVE, roles, term="tangent"), slopes(alone, roles, term="tangent"), tolerance=1e-5)


def test_both_terms():
    check_both_terms()


def test_what_its_turns_cannot_train_is_refused():
    with pytest.raises(ValueError, match="set it to uniform"):
        RegularisedConsistency(consistency=SimplifiedConsistency())
    told = replace(OBJECTIVE.consistency, teacher_guidance=Guidance(2.0, 5.0, told=True))
    with pytest.raises(ValueError, match="set it to false"):
        RegularisedConsistency(consistency=told)


MUTANTS = {
    "uphill": Mutant.of(rcm, "surrogate", lambda x, grad: surrogate(x, -grad), check_both_terms),
    "another direction": Mutant.of(rcm, "weighed", lambda weight, scores, x0: scores.fake.x0 - x0, check_both_terms),
    "half the tangents": Mutant.of(
        rcm, "tangent_errors", lambda *given: (None, 0.5 * ERRORS(*given)[1]), check_both_terms
    ),
    "tangents of other settings": Mutant.of(
        rcm,
        "tangent_errors",
        lambda settings, *given: ERRORS(replace(settings, normaliser=1.0), *given),
        check_both_terms,
    ),
}
ERRORS = rcm.tangent_errors


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
