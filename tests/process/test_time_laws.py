"""Laws of times: within their range, by the seed, and in the unit that the papers write them in."""

import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
)
from processes_at_hand import processes

from fastgen.process import (
    EDM,
    Beta,
    Flow,
    Karras,
    LogitNormal,
    LogNormal,
    Process,
    Uniform,
    even_grid,
    from_scheduler,
    laid,
    shifted,
)


@processes
@pytest.mark.parametrize(
    "law", [Uniform(0.02, 0.98, shift=5.0), Karras(), LogitNormal(shift=3.0), LogNormal()], ids=repr
)
def test_time_laws_stay_in_range_and_follow_the_seed(process: Process, law):
    draw = [law.sample(process, 4000, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw)
    assert draw[0].dtype == torch.float64
    assert (draw[0] > 0).all()
    assert (draw[0] <= 1).all()


def test_the_lognormal_law_is_in_log_sigma():
    process = EDM()
    t = LogNormal(mean=-1.2, std=1.2).sample(process, 20000, torch.Generator().manual_seed(0))
    log_sigma = process.sigma(t).log()
    assert abs(log_sigma.mean() + 1.2) < 0.03
    assert abs(log_sigma.std() - 1.2) < 0.03


KARRAS = {0.0: 0.002, 0.02: 0.0032300924, 0.5: 2.515218976, 0.8: 24.40834179, 0.98: 71.66310295, 1.0: 80.0}
"""Levels at shares of Karras's ramp, by its formula."""


@processes
def test_the_karras_law_has_the_levels_of_edms_ramp(process: Process):
    """At most the noisiest of the process; EDM's own times are even along it."""
    share, sigma = (torch.tensor(list(values), dtype=torch.float64) for values in (KARRAS, KARRAS.values()))
    level = (process.sigma(one := torch.ones(1, dtype=torch.float64)) / process.alpha(one)).nan_to_num(posinf=1e9)
    t = Karras().at(process, share)
    torch.testing.assert_close(process.sigma(t) / process.alpha(t), sigma.clamp(max=level), rtol=1e-8, atol=0)
    if isinstance(process, EDM):
        torch.testing.assert_close(t, share, rtol=0, atol=2e-6)


@pytest.mark.parametrize("law", [Karras(0.0, 0.8), Uniform(0.0, 0.8)], ids=repr)
def test_laws_on_edm_reach_from_its_smallest_noise(law):
    """SiD's levels are those up to index 800 of 1000: 0.002 to 24.4, half of them above 0.966."""
    sigma = EDM().sigma(law.sample(EDM(), 20000, torch.Generator().manual_seed(0)))
    assert 0.00199 < sigma.min() < 0.0021
    assert 24.3 < sigma.max() < 24.41
    assert abs(sigma.median() - 0.966) < 0.1


def test_edm_runs_on_to_clean_data_below_its_smallest_noise():
    process = EDM()
    t = process.from_clock(torch.tensor([0.0, 0.001, 0.002, 0.0021], dtype=torch.float64))
    assert t[0] == 0
    assert (t.diff() > 0).all()
    torch.testing.assert_close(process.sigma(t), torch.tensor([0.0, 0.001, 0.002, 0.0021], dtype=torch.float64))
    assert float(process.sigma(torch.ones(1))) == 80


def test_the_smallest_noise_is_the_schedulers():
    reading = from_scheduler(EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0))
    low, high = reading.process.sigma(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    assert (float(low), float(high)) == pytest.approx((0.01, 50.0), rel=1e-3)


def test_a_uniform_law_may_be_shifted_towards_the_noise():
    """Its bounds are those before the shift: 5 * 0.02 / 1.08 and 5 * 0.98 / 4.92."""
    t = Uniform(0.02, 0.98, shift=5.0).sample(Flow(), 20000, torch.Generator().manual_seed(0))
    assert (round(float(t.min()), 3), round(float(t.max()), 3)) == (0.093, 0.996)
    assert abs(float(t.median()) - 5 / 6) < 0.005


@pytest.mark.parametrize(
    ("law", "wrong", "rule"),
    [
        (Karras, {"low": 0.5, "high": 0.5}, "low < high"),
        (Karras, {"sigma_min": 0.0}, "0 < sigma_min"),
        (Uniform, {"shift": 0.0}, "above 0"),
    ],
)
def test_a_law_that_is_none_is_refused(law, wrong: dict, rule: str):
    with pytest.raises(ValueError, match=rule):
        law(**wrong)


def test_a_shift_counts_from_clean_data_also_above_a_phases_end():
    """Even raw steps above 500 of 1000 under shift 7, as Phased DMD's trainer draws them: 7 r / (1 + 6 r)."""
    raw = torch.tensor([0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    law, end = Uniform(shift=7.0), shifted(raw[:1], 7.0).expand(4)
    t = shifted((raw - 0.5) / 0.5, 7.0)
    torch.testing.assert_close(laid(law, t, end, torch.ones_like(end)), 7 * raw / (1 + 6 * raw))
    torch.testing.assert_close(laid(Karras(), t, 0.5 + 0 * t, 1 + 0 * t), 0.5 + 0.5 * t)


def test_grids_descend_from_one():
    torch.testing.assert_close(even_grid(4), torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(even_grid(4, shift=3.0), torch.tensor([1, 0.9, 0.75, 0.5], dtype=torch.float64))


def test_a_law_with_times_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        Uniform(0.5, 1.5)


def test_beta_times_have_the_laws_moments():
    t = Beta(4.0, 1.5).sample(Flow(), 20000, torch.Generator().manual_seed(0))
    mean, variance = 4 / 5.5, 4 * 1.5 / (5.5**2 * 6.5)
    assert t.mean().item() == pytest.approx(mean, abs=0.003)
    assert t.var().item() == pytest.approx(variance, rel=0.03)
    even = Beta(1.0, 1.0, 0.2, 0.6).sample(Flow(), 20000, torch.Generator().manual_seed(0))
    assert (even.min().item(), even.max().item()) == pytest.approx((0.2, 0.6), abs=1e-3)
    assert even.mean().item() == pytest.approx(0.4, abs=0.003)
