"""Objectives that were made wrong on purpose: the checks of the other files have to raise on each."""

from dataclasses import replace

import fixed_points
import pytest
import torch
from adversaries import check_discriminator_gradient, check_gan_gradient, check_real_and_fake_are_noised_independently
from closed_forms import PROCESSES, streams
from denoising import check_denoising_floor, check_label_dropout, check_regression
from fixed_points import (
    check_dmd_direction,
    check_fixed_point,
    check_noise_below_resolution_is_harmless,
    check_only_the_real_score_is_guided,
    check_scores_hold_no_graph,
    check_vsd_is_the_kl_gradient,
)
from mutants import Mutant
from rollouts import check_backward_simulation
from torch import Tensor
from torch.nn.functional import softplus

from fastgen.models import walk
from fastgen.models.calls import look, through
from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.objectives import Batch
from fastgen.objectives.distribution import dmd, dmd2
from fastgen.objectives.parts import gan, matching, rollout, score_matching, weights
from fastgen.objectives.parts.ops import mean_abs, surrogate
from fastgen.objectives.regression import kd, pretrain
from fastgen.process import Flow


def undetached_scores(call: object, *rest: object) -> matching.Scores:
    return matching.compare(through, *rest)


def one_noise_for_all(roles: Roles, batch: Batch, x: Tensor, **settings: object) -> object:
    return matching.renoised(roles, replace(batch, **streams()), x, **settings)


def vsd_on_flow() -> None:
    check_vsd_is_the_kl_gradient(Flow(), 0.3)


def dmd2_on_flow() -> None:
    check_dmd_direction(Flow(), "dmd2")


RIGHT = weights.weighed
MUTANTS = {
    "flipped direction": Mutant([(dmd2, "weighed", lambda w, s, x0: -RIGHT(w, s, x0))], dmd2_on_flow),
    "no normaliser": Mutant([(dmd2, "weighed", lambda w, s, x0: s.fake.x0 - s.real.x0)], dmd2_on_flow),
    "one normaliser for the batch": Mutant([(weights, "mean_abs", lambda x: x.abs().mean())], dmd2_on_flow),
    "normalised by the fake score": Mutant(
        [(dmd2, "weighed", lambda w, s, x0: RIGHT(w, s, x0 + s.real.x0 - s.fake.x0))], dmd2_on_flow
    ),
    "no floor": Mutant(
        [
            (
                dmd2,
                "weighed",
                lambda w, s, x0: (s.fake.x0 - s.real.x0) / mean_abs(x0.detach() - s.real.x0),
            )
        ],
        check_noise_below_resolution_is_harmless,
    ),
    "vsd without weight": Mutant([(weights, "pad_like", lambda level, x: torch.ones_like(x))], vsd_on_flow),
    "vsd uphill": Mutant([(score_matching, "surrogate", lambda x, grad: surrogate(x, -grad))], vsd_on_flow),
    "summed, not averaged": Mutant(
        [(score_matching, "surrogate", lambda x, grad: x.numel() * surrogate(x, grad))], vsd_on_flow
    ),
    "detached generator": Mutant([(rollout, "through", look)], vsd_on_flow),
    "scores with a graph": Mutant([(fixed_points, "look", through)], check_scores_hold_no_graph),
    "scores in the loss": Mutant(
        [
            (score_matching, "compare", undetached_scores),
            (score_matching, "surrogate", lambda x, grad: (x * grad).mean()),
        ],
        dmd2_on_flow,
    ),
    "a moved fixed point": Mutant(
        [(dmd, "surrogate", lambda x, grad: surrogate(x, grad + 1e-6))],
        lambda: check_fixed_point(Flow(), "dmd"),
    ),
    "guidance forgotten": Mutant(
        [(matching, "guided", lambda call, *rest, w: call(*rest))], check_only_the_real_score_is_guided
    ),
    "generator against the discriminator": Mutant(
        [(gan, "softplus", lambda x: softplus(-x))], lambda: check_gan_gradient(Flow())
    ),
    "saturating generator": Mutant([(gan, "softplus", lambda x: -softplus(-x))], lambda: check_gan_gradient(Flow())),
    "real and fake swapped": Mutant(
        [(gan, "softplus", lambda x: softplus(-x))],
        check_discriminator_gradient,
    ),
    "one noise for real and fake": Mutant(
        [(gan, "renoised", one_noise_for_all)], check_real_and_fake_are_noised_independently
    ),
    "gradient through the whole rollout": Mutant([(walk, "look", through)], lambda: check_backward_simulation(Flow())),
    "no noise between steps": Mutant(
        [(Flow, "renoise", lambda self, x0, t, eps: self.alpha(t)[:, None] * x0)],
        lambda: check_backward_simulation(Flow()),
    ),
    "one step too deep": Mutant(
        [(rollout, "_drawn", lambda count, batch, **_: count - 1)], lambda: check_backward_simulation(Flow())
    ),
    "squared error": Mutant(
        [(kd, "pseudo_huber", lambda d, *, c: d.square().mean())], lambda: check_regression(Flow(), "kd")
    ),
    "regression unweighted": Mutant(
        [(dmd, "pseudo_huber", lambda d, *, c: 2 * kd.pseudo_huber(d, c=c))],
        lambda: check_regression(Flow(), "dmd"),
    ),
    "fake score taught in another space": Mutant(
        [(matching, "denoising_loss", lambda p, noised, *, space: (p.eps - noised.eps).square().mean())],
        lambda: check_denoising_floor(PROCESSES["vp"], "dmd2"),
    ),
    "teacher taught other samples": Mutant(
        [(pretrain, "denoising_loss", lambda p, noised, *, space: (p.x0 - noised.truth.x0.flip(0)).square().mean())],
        lambda: check_denoising_floor(Flow(), "pretrain"),
    ),
    "labels never dropped": Mutant(
        [(Conditioning, "dropped", lambda self, rows: self)], lambda: check_label_dropout(0.25)
    ),
    "the other labels dropped": Mutant(
        [(Conditioning, "dropped", lambda self, rows: WELL_DROPPED(self, ~rows))],
        lambda: check_label_dropout(0.25),
    ),
}
WELL_DROPPED = Conditioning.dropped


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
