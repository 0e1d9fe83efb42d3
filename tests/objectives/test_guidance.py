"""Laws of guidance: what is guided, by how much, who draws it, and where it leads."""

from dataclasses import replace

import pytest
import torch
from closed_forms import ScriptedBatch, clean, close, gaussian_roles, only, processes, quasi_random, slopes, streams
from directions import classed
from guidance_laws import (
    LAWS,
    check_a_range_is_drawn_by_the_shared_stream,
    check_calls_of_zero,
    check_predictions_under,
    check_zero_and_anti_lead_where_guidance_does,
    labels_of,
    recorded,
)
from torch import Tensor

from fastgen.models.calls import look
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.guidance_laws import Anti, Fixed, GuidanceLaw, LongShort, Shared, Zero
from fastgen.objectives.parts.matching import compare, fake_terms
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

laws = pytest.mark.parametrize("name", LAWS)


@laws
def test_each_law_has_its_scales(name: str):
    law, scales = LAWS[name]
    assert law.drawn(streams()["shared_rng"]) == scales


def test_a_range_is_drawn_by_the_shared_stream():
    check_a_range_is_drawn_by_the_shared_stream()


@processes
@laws
def test_the_scores_and_the_training_are_guided_as_the_law_says(name: str, process: Process):
    check_predictions_under(name, process)


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
