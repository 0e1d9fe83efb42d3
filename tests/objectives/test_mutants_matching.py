"""The direction family and what it shares, made wrong on purpose: the checks of the other files have to raise."""

from dataclasses import replace

import adversaries
import pytest
import torch
from adversaries import (
    check_generator_kind,
    check_gradient_penalty,
    check_logistic_optimum,
    check_pairs_share_times_and_noises,
)
from closed_forms import PROCESSES, only
from directions import check_augmentation_times, check_decoupled_sum, check_diff_instruct, check_swiftbrush_and_vsd
from embeddings import check_embeddings
from fixed_points import check_the_fake_turn_learns_of_what_is_there
from guidance_laws import (
    check_a_range_is_drawn_by_the_shared_stream,
    check_calls_of_zero,
    check_predictions_under,
    check_zero_and_anti_lead_where_guidance_does,
)
from mutants import Mutant
from rollouts import check_deterministic_rollout
from score_weights import check_kl_score, check_ratio_means, check_weight
from segments import check_kl_weight, check_phase_normaliser, check_phased_is_the_kl_gradient, check_tdm_direction
from sub_intervals import check_precision, check_targets_are_unbiased, check_times_are_laid_over, check_velocity_target
from torch import Tensor, nn

from fastgen.models import calls, scalars, state, walk
from fastgen.objectives.distribution import decoupled_dmd, diff_instruct, phased_dmd
from fastgen.objectives.distribution import vsd as vsd_module
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.parts import gan, matching, ops, rollout, score_matching, weights
from fastgen.objectives.parts import guidance_laws as guidance
from fastgen.objectives.parts.guidance_laws import Scales
from fastgen.process import Flow, Prediction, Process
from fastgen.process.process import Kernel

FLOW, VP, EDM = Flow(), PROCESSES["vp"], PROCESSES["edm"]
WELL_NOISED, WELL_LAID = ops.Noised.of.__func__, ops.laid
WEIGHED, SURROGATE, WEIGHTS = weights.weighed, ops.surrogate, weights.WEIGHTS
RANGE_DRAWN = guidance.Shared.drawn


def noised(**changes: object) -> list:
    """`Noised.of` with some of its results computed otherwise."""

    def of(cls: type, process: Process, x: Tensor, t: Tensor, eps: Tensor, *, s: Tensor | None = None) -> object:
        right = WELL_NOISED(cls, process, x, t, eps, s=s)
        return replace(right, **{name: wrong(right, process, x, s) for name, wrong in changes.items()})

    return [(ops.Noised, "of", classmethod(of))]


def as_if_clean(right: ops.Noised, process: Process, x: Tensor, s: Tensor) -> Prediction:
    return Prediction(process, right.t, x / process.alpha(s)[:, None], right.eps)


def unscaled_noise(right: ops.Noised, process: Process, x: Tensor, s: Tensor) -> Prediction:
    return Prediction(process, right.t, right.truth.x0, right.eps)


def independent(self: Process, s: Tensor, t: Tensor) -> Kernel:
    """A kernel that forgets the noise that is there already."""
    return Kernel(self.alpha(t) / self.alpha(s), self.sigma(t))


def scaled(factor: float) -> object:
    return lambda x, grad: SURROGATE(x, factor * grad)


def scales(**changes: float) -> object:
    return lambda self, rng: replace(Scales(1.0, -1.0, 1.0), **changes)


MUTANTS = {
    # directions
    "diff-instruct uphill": Mutant([(score_matching, "surrogate", scaled(-1.0))], lambda: check_diff_instruct(EDM)),
    "diff-instruct normalised": Mutant(
        [(diff_instruct, "weighed", lambda w, s, x0: WEIGHED("l1", s, x0))], lambda: check_diff_instruct(FLOW)
    ),
    "swiftbrush guides the real score alone": Mutant(
        [(guidance.Shared, "drawn", lambda self, rng: Scales(self.low, 1.0, 1.0))],
        lambda: check_swiftbrush_and_vsd(FLOW),
    ),
    "vsd without sigma": Mutant(
        [(vsd_module, "weighed", lambda w, s, x0: WEIGHED("alpha", s, x0))], lambda: check_swiftbrush_and_vsd(VP)
    ),
    "augmentation uphill": Mutant(
        [(decoupled_dmd.DecoupledDMD, "_augmentation", lambda self, *rest: -RIGHT_AUGMENTATION(self, *rest))],
        lambda: check_decoupled_sum(FLOW),
    ),
    "augmentation by the scale itself": Mutant(
        [
            (
                decoupled_dmd.DecoupledDMD,
                "_augmentation",
                lambda self, *rest: self.augmentation / (self.augmentation - 1) * RIGHT_AUGMENTATION(self, *rest),
            )
        ],
        lambda: check_decoupled_sum(FLOW),
    ),
    "augmentation at all times": Mutant(
        [(decoupled_dmd, "renoised", lambda *a, until, **rest: ops.renoised(*a, **rest))],
        lambda: check_augmentation_times(below=True),
    ),
    # segments
    "tdm at the clean sample": Mutant(
        [(matching, "renoised", lambda roles, batch, x, *, law, s: ops.renoised(roles, batch, x, law=law))],
        lambda: check_tdm_direction(FLOW),
    ),
    "tdm with an independent kernel": Mutant([(Flow, "transition", independent)], lambda: check_tdm_direction(FLOW)),
    "tdm tells another segment": Mutant(
        [(matching, "scalars_of", lambda roles, landing: {"called": landing.t, "landed": 0 * landing.landed})],
        lambda: check_tdm_direction(FLOW),
    ),
    "tdm tells the times the wrong way round": Mutant(
        [(matching, "scalars_of", lambda roles, landing: {"called": landing.landed, "landed": landing.t})],
        lambda: check_tdm_direction(FLOW),
    ),
    "tdm bounded twice": Mutant(
        [(score_matching, "surrogate", lambda x, grad: SURROGATE(x, grad / (grad**2 + 1).sqrt()))],
        lambda: check_tdm_direction(FLOW, huber=0.3),
    ),
    "phased by the clean prediction": Mutant(
        [(score_matching, "land", lambda *a, **k: with_clean(rollout.land(*a, **k)))],
        lambda: check_phased_is_the_kl_gradient(FLOW),
    ),
    "phased without its kernel's factor": Mutant(
        noised(scale=lambda right, *_: torch.ones_like(right.t)), lambda: check_phased_is_the_kl_gradient(FLOW)
    ),
    "phased normalised by its noisy sample": Mutant(
        [(phased_dmd, "weighed", lambda w, s, x0: WEIGHED(w, s, x0 + 1))], lambda: check_phase_normaliser(FLOW)
    ),
    "kl with the wrong power of sigma": Mutant(
        [(phased_dmd, "weighed", lambda w, s, x0: WEIGHED("vsd", s, x0))],
        lambda: check_kl_weight(FLOW, PhasedDMD(phases=1, weight="kl", times=only(0.5))),
    ),
    # sub-intervals
    "x_s taken for clean": Mutant(noised(truth=as_if_clean), lambda: check_targets_are_unbiased(FLOW)),
    "fresh noise taken for the whole": Mutant(noised(truth=unscaled_noise), lambda: check_targets_are_unbiased(VP)),
    "velocity of a clean sample": Mutant(noised(truth=as_if_clean), lambda: check_velocity_target(VP)),
    "no precision": Mutant(noised(precision=lambda right, *_: torch.ones_like(right.t)), lambda: check_precision(FLOW)),
    "precision without its square": Mutant(
        noised(precision=lambda right, *_: right.precision.sqrt()), lambda: check_precision(FLOW)
    ),
    "times below the sample's own": Mutant(
        [(ops, "laid", lambda law, t, low, high: WELL_LAID(law, t, low, high) - low)],
        check_times_are_laid_over,
    ),
    # weights
    "kl forgets the sample's own time": Mutant(
        noised(scale=lambda right, process, *_: process.alpha(right.t)), lambda: check_weight("kl", FLOW)
    ),
    "kl of the squared sigma": Mutant(
        [(weights, "WEIGHTS", WEIGHTS | {"kl": lambda s, x0: WEIGHTS["kl"](s, x0) ** 2})], lambda: check_kl_score(FLOW)
    ),
    "real minus fake": Mutant(
        [(weights, "WEIGHTS", WEIGHTS | {"kl": lambda s, x0: -WEIGHTS["kl"](s, x0)})], lambda: check_kl_score(FLOW)
    ),
    "one mean for all times": Mutant([(state, "BINS", 1)], check_ratio_means),
    "new means for old": Mutant(
        [(state.RatioMeans, "normalise", lambda self, r, t, *, rate: MEANS(self, r, t, rate=1 - rate))],
        check_ratio_means,
    ),
    # guidance
    "a scale of this rank's own": Mutant(
        [(guidance.Shared, "drawn", lambda self, rng: RANGE_DRAWN(self, torch.default_generator))],
        check_a_range_is_drawn_by_the_shared_stream,
    ),
    "long-short trained without": Mutant(
        [(guidance.LongShort, "drawn", lambda self, rng: Scales(self.scale, self.scale, 1.0))],
        lambda: check_predictions_under("long_short", FLOW),
    ),
    "zero with a condition": Mutant(
        [(guidance.Zero, "drawn", lambda self, rng: Scales(1.0, 1.0, 1.0))], check_calls_of_zero
    ),
    "zero trained with a condition": Mutant(
        [(guidance.Zero, "drawn", lambda self, rng: Scales(1.0, 0.0, 1.0))], check_calls_of_zero
    ),
    "anti towards the condition": Mutant(
        [(guidance.Anti, "drawn", scales(fake=1.0))], lambda: check_zero_and_anti_lead_where_guidance_does("anti", FLOW)
    ),
    "real unguided": Mutant(
        [(guidance.Fixed, "drawn", lambda self, rng: Scales(1.0, self.scale, 1.0))],
        lambda: check_predictions_under("fixed", FLOW),
    ),
    # adversarial
    "logistic the wrong way": Mutant(
        [(adversaries, "LOSSES", gan.LOSSES | {"logistic": lambda real, fake: gan.logistic_loss(fake, real)})],
        check_logistic_optimum,
    ),
    "hinge against the generator": Mutant(
        [(gan, "generator_loss", lambda *a: -GENERATOR(*a))], lambda: check_generator_kind("hinge", FLOW)
    ),
    "relativistic without real samples": Mutant(
        [(gan, "_real", lambda g, roles, batch, other, *_: other)],
        lambda: check_generator_kind("relativistic", FLOW),
    ),
    "pairs of their own noises": Mutant(
        [(gan, "_real", lambda g, roles, batch, other, *_: ops.renoised(roles, batch, batch.x0, law=g.times))],
        check_pairs_share_times_and_noises,
    ),
    "penalty at generated samples": Mutant(
        [(gan, "gradient_penalty", lambda roles, batch, real: PENALTY(roles, batch, replace(real, x_t=real.x_t + 1)))],
        check_gradient_penalty,
    ),
    "penalty of the slope's size": Mutant(
        [(gan, "gradient_penalty", lambda *a: PENALTY(*a).sqrt())], check_gradient_penalty
    ),
    # rollouts
    "a segment too far": Mutant(
        [(rollout, "_jump", lambda *a, to, **named: JUMP(*a, to=0.0, **named))],
        lambda: check_deterministic_rollout(FLOW, "trajectory", [0.7, 0.4, 0.2, 0.0]),
    ),
    "noise along a trajectory": Mutant(
        [(Prediction, "at", lambda self, s: AT(self, s) + 0.01)],
        lambda: check_deterministic_rollout(FLOW, "trajectory", [0.7, 0.4, 0.2, 0.0]),
    ),
    "gradient through the trajectory": Mutant(
        [(walk, "look", calls.through)],
        lambda: check_deterministic_rollout(FLOW, "trajectory", [0.7, 0.4, 0.2, 0.0]),
    ),
    "every phase a step": Mutant(
        [(torch, "tensor_split", lambda x, n: x.split(1))],
        lambda: check_deterministic_rollout(FLOW, "phased", [0.4, 0.4, 0.0, 0.0], phases=2),
    ),
    "the fake turn draws anew": Mutant.of(
        score_matching, "landing_of", rollout.land, lambda: check_the_fake_turn_learns_of_what_is_there("dmd2")
    ),
    "the fake turn's samples with a graph": Mutant.of(
        score_matching,
        "landing_of",
        lambda way, roles, batch, first: batch.landing or rollout.land(way, roles, batch),
        lambda: check_the_fake_turn_learns_of_what_is_there("dmd2"),
    ),
    # scalars
    "embeddings that speak at once": Mutant([(nn.init, "zeros_", lambda x: nn.init.ones_(x))], check_embeddings),
    "nobody is told": Mutant([(scalars, "_waves", lambda value: torch.zeros(len(value), 128))], check_embeddings),
}
RIGHT_AUGMENTATION = decoupled_dmd.DecoupledDMD._augmentation
MEANS, PENALTY, JUMP, AT = state.RatioMeans.normalise, gan.gradient_penalty, rollout._jump, Prediction.at
GENERATOR = gan.generator_loss


def with_clean(landing: object) -> object:
    return replace(landing, x=landing.x0)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_piece_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
