"""Laws of guidance: what is guided, by how much, and where it leads."""

from dataclasses import replace

import pytest
import torch
from closed_forms import PLANE, clean, close, gaussian_roles, only, quasi_random, slopes
from directions import classed, clean_mean, level
from recorder import Recorder
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.guidance_laws import Anti, Fixed, GuidanceLaw, LongShort, Scales, Shared, Zero
from fastgen.objectives.parts.matching import compare, fake_terms
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser

LAWS: dict[str, tuple[GuidanceLaw, Scales]] = {
    "none": (Fixed(), Scales(1.0, 1.0, 1.0)),
    "fixed": (Fixed(4.5), Scales(4.5, 1.0, 1.0)),
    "swiftbrush": (Shared(4.5, 4.5), Scales(4.5, 4.5, 1.0)),
    "long_short": (LongShort(2.0), Scales(2.0, 2.0, 2.0)),
    "zero": (Zero(), Scales(1.0, 0.0, 0.0)),
    "anti": (Anti(-1.0), Scales(1.0, -1.0, 1.0)),
}


def recorded(process: Process) -> tuple[Roles, Recorder, Recorder]:
    """Roles whose scores are both that of PLANE, and the two."""
    real, fake = Recorder(ExactDenoiser(process, PLANE)), Recorder(ExactDenoiser(process, PLANE))
    return gaussian_roles(process, real_score=real, fake_score=fake), real, fake


def labels_of(recorder: Recorder) -> list[int]:
    return torch.cat([call.cond.batched["class_labels"] for call in recorder.calls]).unique().tolist()


def combined(cond: Tensor, null: Tensor, w: float) -> Tensor:
    return null + w * (cond - null)


def scale_of(guided: Tensor, cond: Tensor, null: Tensor) -> float:
    return ((guided - null).flatten() @ (cond - null).flatten() / (cond - null).square().sum()).item()


def check_a_range_is_drawn_by_the_shared_stream() -> None:
    """One scale for both scores and for the batch, the same on two ranks with samples and noises of their own."""
    roles, _, _ = recorded(Flow())
    exact, drawn = roles.real_score.inner, []
    for seed in (1, 2):
        shared = torch.Generator().manual_seed(7)
        for _ in range(30):
            x0, eps = torch.randn(2, 4, 2, dtype=torch.float64)
            batch = replace(classed(1, eps), rng=torch.Generator().manual_seed(seed), shared_rng=shared)
            scores = compare(look, VSD(guidance=Shared(2.0, 4.0)), roles, batch, clean(batch, x0))
            cond, null = (exact(scores.x_t, scores.t, c).x0 for c in (batch.cond, batch.cond.unconditional))
            drawn.append([scale_of(score.x0, cond, null) for score in (scores.real, scores.fake)])
    scales = torch.tensor(drawn).reshape(2, 30, 2)
    close(scales[0], scales[1], tolerance=1e-4)
    close(scales[..., 0], scales[..., 1], tolerance=1e-4)
    assert (scales.min().item(), scales.mean().item(), scales.max().item()) == pytest.approx((2, 3, 4), abs=0.25)


def check_predictions_under(name: str, process: Process) -> None:
    """Both scores of the comparison, and the prediction that is trained, from the mixture's densities."""
    law, scales = LAWS[name]
    objective = VSD(guidance=law, times=only(0.5), fake_times=only(0.5), fake_space="x0")
    roles, _, fake = recorded(process)
    x0, eps = quasi_random(2, 64)
    batch = classed(1, eps)
    scores = compare(look, objective, roles, batch, clean(batch, x0))
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    x_t = alpha * x0 + sigma * eps
    cond, null = clean_mean(PLANE, x_t, alpha, sigma, label=1), clean_mean(PLANE, x_t, alpha, sigma)
    close(scores.real.x0, combined(cond, null, scales.real), tolerance=1e-5)
    close(scores.fake.x0, combined(cond, null, scales.fake), tolerance=1e-5)
    fake.calls.clear()
    plain = replace(objective, guidance=replace(law, dropout=0.0)) if law.dropout else objective
    loss = fake_terms(plain, roles, classed(1, eps), clean(batch, x0))["denoise"]
    close(loss, (combined(cond, null, scales.learned) - x0).square().mean(), tolerance=1e-5)


def check_calls_of_zero() -> None:
    roles, real, fake = recorded(Flow())
    objective, (x0, eps) = VSD(guidance=Zero()), quasi_random(2, 8)
    batch = classed(1, eps)
    compare(look, objective, roles, batch, clean(batch, x0))
    assert (labels_of(real), labels_of(fake)) == ([1], [-1])
    fake.calls.clear()
    fake_terms(objective, roles, classed(1, eps), clean(batch, x0))
    assert labels_of(fake) == [-1]


def check_zero_and_anti_lead_where_guidance_does(name: str, process: Process) -> None:
    """At equal scores descent goes along cond - null, once for Zero and twice for Anti at -1."""
    roles, _, _ = recorded(process)
    z, eps = quasi_random(2, 256)
    objective = VSD(guidance=LAWS[name][0], times=only(0.5))
    (mean, _) = slopes(roles, objective, classed(0, z, eps), "dm")
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    generator = roles["generator"]
    x_t = alpha * (generator.mean + z @ generator.factor.T).detach() + sigma * eps
    gap = clean_mean(PLANE, x_t, alpha, sigma, label=0) - clean_mean(PLANE, x_t, alpha, sigma)
    weight = alpha * sigma / (alpha**2 + sigma**2)
    close(mean, -{"zero": 1, "anti": 2}[name] * (weight * gap).mean(dim=0) / 2, tolerance=1e-5)
