"""Indices drawn by weight, row by row."""

import torch

from fastgen.objectives.parts.ops import picked
from fastgen.planning.card import NOWHERE, Numbers, on_card
from fastgen.planning.meter import Meter

ROWS = 20000


def test_indices_come_as_often_as_their_weights_say():
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 1.0, 0.0, 1.0]]).repeat(ROWS, 1)
    drawn = picked(weights, torch.Generator().manual_seed(0)).view(ROWS, 2)
    for column, expected in enumerate(([0, 0.25, 0, 0.75, 0], [0.5, 0, 0.25, 0, 0.25])):
        shares = drawn[:, column].bincount(minlength=5) / ROWS
        assert not shares[torch.tensor(expected) == 0].any()
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.015)  # four deviations


def test_rows_allow_what_they_say():
    allowed = torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[:, 2] = True
    drawn = picked(allowed, torch.Generator().manual_seed(2))
    assert allowed.gather(1, drawn[:, None]).all()


def test_a_plan_draws_them_too():
    with Meter() as meter, on_card(meter):
        assert picked(torch.ones(3, 5, device=NOWHERE), Numbers()).shape == (3,)
