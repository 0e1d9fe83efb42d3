"""Laws of guidance: what is guided, by how much, who draws it, and where it leads."""

from dataclasses import replace

import pytest
import torch
from closed_forms import (
    PLANE,
    ScriptedBatch,
    clean,
    close,
    gaussian_roles,
    only,
    processes,
    quasi_random,
    slopes,
    streams,
)
from recorder import Recorder
from test_directions import classed, clean_mean, level
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.guidance_laws import Anti, Fixed, GuidanceLaw, LongShort, Scales, Shared, Zero
from fastgen.objectives.parts.matching import compare, fake_terms
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

LAWS: dict[str, tuple[GuidanceLaw, Scales]] = {
    "none": (Fixed(), Scales(1.0, 1.0, 1.0)),
    "fixed": (Fixed(4.5), Scales(4.5, 1.0, 1.0)),
    "swiftbrush": (Shared(4.5, 4.5), Scales(4.5, 4.5, 1.0)),
    "long_short": (LongShort(2.0), Scales(2.0, 2.0, 2.0)),
    "zero": (Zero(), Scales(1.0, 0.0, 0.0)),
    "anti": (Anti(-1.0), Scales(1.0, -1.0, 1.0)),
}
laws = pytest.mark.parametrize("name", LAWS)


def recorded(process: Process) -> tuple[Roles, Recorder, Recorder]:
    """Roles whose scores are both that of PLANE, and the two."""
    real, fake = Recorder(ExactDenoiser(process, PLANE)), Recorder(ExactDenoiser(process, PLANE))
    return gaussian_roles(process, real_score=real, fake_score=fake), real, fake


def labels_of(recorder: Recorder) -> list[int]:
    return torch.cat([call.cond.batched["class_labels"] for call in recorder.calls]).unique().tolist()


def combined(cond: Tensor, null: Tensor, w: float) -> Tensor:
    return null + w * (cond - null)


@laws
def test_each_law_has_its_scales(name: str):
    law, scales = LAWS[name]
    assert law.drawn(streams()["shared_rng"]) == scales


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


def test_a_range_is_drawn_by_the_shared_stream():
    check_a_range_is_drawn_by_the_shared_stream()


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


@processes
@laws
def test_the_scores_and_the_training_are_guided_as_the_law_says(name: str, process: Process):
    check_predictions_under(name, process)


def check_calls_of_zero() -> None:
    roles, real, fake = recorded(Flow())
    objective, (x0, eps) = VSD(guidance=Zero()), quasi_random(2, 8)
    batch = classed(1, eps)
    compare(look, objective, roles, batch, clean(batch, x0))
    assert (labels_of(real), labels_of(fake)) == ([1], [-1])
    fake.calls.clear()
    fake_terms(objective, roles, classed(1, eps), clean(batch, x0))
    assert labels_of(fake) == [-1]


def test_zero_guidance_hides_the_condition_from_the_fake_score_alone():
    check_calls_of_zero()


@laws
def test_a_fake_score_that_is_asked_without_condition_learns_without(name: str):
    law = LAWS[name][0]
    roles, _, fake = recorded(Flow())
    x0, eps = torch.randn(2, 4096, 2, dtype=torch.float64)
    batch = classed(1, eps)
    compare(look, VSD(guidance=law), roles, batch, clean(batch, x0))
    seen = torch.cat([call.cond.batched["class_labels"] for call in fake.calls])
    assert set(seen[:4096].tolist()) == ({-1} if name == "zero" else {1}), "no row is dropped from the comparison"
    fake.calls.clear()
    fake_terms(VSD(guidance=law), roles, classed(1, eps), clean(batch, x0))
    first = fake.calls[0].cond.batched["class_labels"][:4096]
    share = (first == -1).double().mean().item()
    assert share == pytest.approx({"swiftbrush": 0.1, "long_short": 0.1, "anti": 0.1, "zero": 1}.get(name, 0), abs=0.02)


@pytest.mark.parametrize("law", [Fixed(1.0), LongShort(1.0)])
def test_a_scale_of_one_needs_no_unconditional_mode(law: GuidanceLaw):
    objective, (x0, eps) = VSD(guidance=law), quasi_random(2, 8)
    assert not objective.needs.null
    roles, _, fake = recorded(Flow())
    batch = classed(1, eps, eps)
    batch.cond = replace(batch.cond, null=None)
    compare(look, objective, roles, batch, clean(batch, x0))
    fake_terms(objective, roles, batch, clean(batch, x0))
    assert labels_of(fake) == [1]


def test_other_laws_ask_for_an_unconditional_mode():
    laws = [Fixed(0.0), Fixed(2.0), Shared(1.0, 2.0), LongShort(2.0), Zero(), Anti()]
    assert all(VSD(guidance=law).needs.null for law in laws)
    with pytest.raises(ValueError, match="scale < 0"):
        Anti(0.5)


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


@processes
@pytest.mark.parametrize("name", ["zero", "anti"])
def test_zero_and_anti_guidance_lead_where_guidance_does(name: str, process: Process):
    check_zero_and_anti_lead_where_guidance_does(name, process)


@laws
def test_where_the_condition_says_nothing_every_law_is_none(name: str):
    """Two scores without classes of their own, asked under all labels."""
    generated = []
    for law in (LAWS[name][0], Fixed(1.0)):
        z, eps = quasi_random(2, 64)
        batch: ScriptedBatch = classed(0, z, eps)
        roles = gaussian_roles(Flow())
        generated.append(slopes(roles, VSD(guidance=law, times=only(0.5)), batch, "dm"))
    close(*generated)


def test_long_short_guidance_is_undone_by_its_training():
    """A linear fake score c = a x + b, u = 0 whose guided output is fitted: w c is the mean, so c is its w-th part."""
    law = LongShort(2.0, dropout=0.0)
    data = Mixture(torch.tensor([[0.8, -0.4]]), 1e-12 * torch.eye(2)[None])
    half = Mixture(data.means / 2, data.covariances)
    for fake, best in ((half, True), (data, False)):
        null, cond = ExactDenoiser(Flow(), Mixture(0 * data.means, data.covariances)), ExactDenoiser(Flow(), fake)
        roles = gaussian_roles(Flow(), fake_score=Switched(cond, null))
        batch = classed(0, torch.randn(64, 2, dtype=torch.float64))
        x0 = data.means.expand(64, 2)
        loss = fake_terms(VSD(guidance=law, fake_space="x0"), roles, batch, clean(batch, x0))["denoise"]
        assert (loss.item() < 1e-8) == best


class Switched(torch.nn.Module):
    """One denoiser of rows with a class and another of those without."""

    scalars: tuple[str, ...] = ()

    def __init__(self, cond: ExactDenoiser, null: ExactDenoiser) -> None:
        super().__init__()
        self.cond, self.null, self.process = cond, null, cond.process
        self.guide, self.tap = cond.guide, cond.tap

    def forward(self, x_t: Tensor, t: Tensor, cond: object, scalars: object = None) -> object:
        everyone = self.cond.data.uncond(len(t))
        classes = (cond.batched["class_labels"] >= 0).double()
        return self.null(x_t, t, everyone).lerp(self.cond(x_t, t, everyone), classes)
