"""The path-gradient and the ratio-weighted objectives, made wrong on purpose: their checks have to raise on each."""

import inspect
import textwrap
from collections.abc import Callable

import divergences
import pytest
from closed_forms import PROCESSES
from divergences import (
    check_direction_is_the_divergences_gradient,
    check_f_distill,
    check_fisher_functional,
    check_fisher_reference,
    check_ratio_means,
    check_weight_is_the_second_derivative,
    detached,
)
from fixed_points import check_fixed_point
from identities import (
    check_gan_is_weighted_per_sample,
    check_gan_waits,
    check_half_is_the_fisher_gradient,
    check_sid_closed_form,
    check_sim_theorem,
    check_weight_is_detached,
    check_zero_guidance,
)
from mutants import Mutant
from quadrature import LINE, SQUARE

from fastgen.models.calls import look
from fastgen.models.state import RatioMeans
from fastgen.objectives.distribution import f_distill, sid, sim, uni_instruct
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.sim import SIM
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts import gan
from fastgen.objectives.parts.divergences import DIVERGENCES, Divergence
from fastgen.objectives.parts.guidance_laws import Zero
from fastgen.objectives.parts.ops import mean_abs
from fastgen.objectives.parts.weights import WEIGHTS

FLOW = PROCESSES["flow"]


def rewritten(function: Callable, right: str, wrong: str) -> Callable:
    """The function with a piece of its source replaced."""
    plain = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(plain))
    assert right in source, f"{right!r} is not in {plain.__qualname__}: the mutant has to follow the code"
    names: dict[str, Callable] = {}
    exec("from __future__ import annotations\n" + source.replace(right, wrong), plain.__globals__, names)
    return names[plain.__name__]


def changed(owner: object, name: str, right: str, wrong: str, check: Callable[[], None]) -> Mutant:
    return Mutant.of(owner, name, rewritten(getattr(owner, name), right, wrong), check)


def sid_of_the_paper() -> None:
    check_sid_closed_form(FLOW, 1.2)


def weighed_gan() -> None:
    check_gan_is_weighted_per_sample(FLOW)


def huber() -> None:
    check_sim_theorem(FLOW, SQUARE, "pseudo_huber", nodes=8)


def jensen_shannon() -> None:
    check_f_distill(FLOW, "jensen_shannon", (0.5, 1.2))


def fisher_of_jensen_shannon() -> None:
    check_fisher_reference("jensen_shannon")


def quartic() -> None:
    check_sim_theorem(FLOW, LINE, "quartic", nodes=12)


def fisher_in_two_dimensions() -> None:
    check_fisher_functional(FLOW, "jensen_shannon", SQUARE, nodes=12)


ATTACHED = WEIGHTS | {"l1": lambda scores, x0: 1 / mean_abs(x0 - scores.real.x0)}
RIGHT_LOSS = gan.generator_loss
SEEKING = DIVERGENCES | {"jensen_shannon": DIVERGENCES["softened_reverse_kl"]}
HALVED = DIVERGENCES | {"pearson": Divergence(DIVERGENCES["pearson"].f, lambda u: (2 * u).exp())}

MUTANTS = {
    "sid only looks": Mutant.of(sid, "through", look, sid_of_the_paper),
    "sid uphill": changed(sid, "identity_loss", "weight * gap", "weight * -gap", sid_of_the_paper),
    "sid from the fake score": changed(
        sid, "identity_loss", "scores.real.x0 - scores.truth", "scores.fake.x0 - scores.truth", sid_of_the_paper
    ),
    "sid with a detached gap": changed(
        sid, "identity_loss", "alpha * gap", "alpha * gap.detach()", lambda: check_half_is_the_fisher_gradient(FLOW)
    ),
    "sid summed": changed(sid, "identity_loss", ".mean()", ".sum()", sid_of_the_paper),
    "sid's weight with a gradient": Mutant.of(sid, "WEIGHTS", ATTACHED, lambda: check_weight_is_detached(FLOW)),
    "sid's fixed point moved": changed(
        sid, "identity_loss", "- scores.fake.x0", "- 1.000001 * scores.fake.x0", lambda: check_fixed_point(FLOW, "sid")
    ),
    "one weight for the batch": Mutant.of(gan, "generator_loss", lambda *a: RIGHT_LOSS(*a).mean()[None], weighed_gan),
    "gan without weights": changed(sid.IdentityMatching, "matched", "noised, weight=weight", "noised", weighed_gan),
    "gan's weight with a gradient": Mutant.of(sid, "WEIGHTS", ATTACHED, weighed_gan),
    "gan from the start": changed(gan, "acts", "batch.images >= gan.start", "True", check_gan_waits),
    "gan one image late": changed(gan, "acts", ">= gan.start", "> gan.start", check_gan_waits),
    "zero guidance of nothing": changed(Zero, "drawn", "(1.0, 0.0, 0.0)", "(1.0, 1.0, 0.0)", check_zero_guidance),
    "zero guidance not learned": changed(Zero, "drawn", "(1.0, 0.0, 0.0)", "(1.0, 0.0, 1.0)", check_zero_guidance),
    "sim only looks": Mutant.of(sim, "through", look, huber),
    "sim with a detached denominator": changed(SIM, "matched", "](square,", "](square.detach(),", huber),
    "sim with a detached slope": changed(SIM, "matched", "* gap *", "* gap.detach() *", huber),
    "sim from the real score": changed(SIM, "matched", "(scores.fake.x0 - s", "(scores.real.x0 - s", huber),
    "sim of a summed square": changed(SIM, "matched", "gap.square().mean", "gap.square().sum", huber),
    "sim's quartic halved": Mutant.of(
        sim,
        "SLOPES",
        sim.SLOPES | {"quartic": lambda n, c: n},
        lambda: check_sim_theorem(FLOW, LINE, "quartic", nodes=12),
    ),
    "weights of another divergence": Mutant.of(
        divergences, "DIVERGENCES", SEEKING, lambda: check_weight_is_the_second_derivative("jensen_shannon")
    ),
    "half a weight": Mutant.of(
        divergences, "DIVERGENCES", HALVED, lambda: check_direction_is_the_divergences_gradient(FLOW, "pearson")
    ),
    "slope by the ratio": changed(
        Divergence,
        "slope",
        "return slope",
        "return slope / log_ratio.exp()",
        lambda: check_weight_is_the_second_derivative("jeffreys"),
    ),
    "seeking for covering": Mutant.of(f_distill, "DIVERGENCES", SEEKING, jensen_shannon),
    "ratio upside down": changed(FDistill, "_h", ").exp()", ").neg().exp()", jensen_shannon),
    "ratio not clipped": changed(FDistill, "_h", ".clamp(*self.clip)", "", jensen_shannon),
    "ratio not normalised": Mutant.of(RatioMeans, "normalise", lambda self, ratio, t, *, rate: ratio, jensen_shannon),
    "weights not normalised": changed(FDistill, "_h", "h / h.mean()", "h", jensen_shannon),
    "means upside down": changed(RatioMeans, "normalise", "rate * self", "(1 - rate) * self", check_ratio_means),
    "one mean for all times": changed(RatioMeans, "normalise", "(t * BINS)", "(0 * t)", check_ratio_means),
    "means forgotten": changed(RatioMeans, "normalise", "self.means.copy_(", "(", check_ratio_means),
    "ratio detached": Mutant.of(UniInstruct, "_log_ratio", detached, fisher_of_jensen_shannon),
    "ratio's slope backwards": changed(
        UniInstruct, "_log_ratio", "return log_ratio +", "return log_ratio -", fisher_of_jensen_shannon
    ),
    "ratio's slope averaged": changed(
        UniInstruct, "_log_ratio", ".sum(dim=1)", ".mean(dim=1)", fisher_in_two_dimensions
    ),
    "no slope": changed(UniInstruct, "matched", "(h - slope)", "h", fisher_of_jensen_shannon),
    "slope added": changed(UniInstruct, "matched", "(h - slope)", "(h + slope)", fisher_of_jensen_shannon),
    "half of the cross term": changed(UniInstruct, "matched", "2 * h", "h", fisher_of_jensen_shannon),
    "uni-instruct only looks": Mutant.of(uni_instruct, "through", look, fisher_of_jensen_shannon),
    "uni-instruct from the real score": changed(
        UniInstruct, "matched", "(scores.fake.x0 - scores", "(scores.real.x0 - scores", fisher_of_jensen_shannon
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
