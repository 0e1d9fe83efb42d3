"""Gradients of recorded backward passes add up in fixed memory."""

import pytest
import torch
from torch import nn

from benchmarks.watches import Operations
from fastgen.models import sums as rooms
from fastgen.models.sums import Arriving, Sums


def test_calls_of_a_turn_add_to_one_gradient_and_another_turn_begins_anew():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    whole, part = Sums(weights), Sums(weights[:2])

    def adding(sums, *values):
        return lambda: [place.add_(value) for place, value in zip(sums.places, values, strict=True)]

    for _ in range(2):  # turns
        for weight in weights:
            weight.grad = None
        part.add(weights[:2], [0, 1], adding(part, 1.0, 2.0))
        held = [weight.grad for weight in weights[:2]]
        whole.add(weights, [1, 2], adding(whole, 0.0, 10.0, 20.0))
        part.add(weights[:2], [0, 1], adding(part, 100.0, 200.0))
        assert [weight.grad.tolist() for weight in weights] == [[101.0] * 2, [212.0] * 2, [20.0] * 2]
        assert all(weight.grad is grad for weight, grad in zip(weights, held, strict=False)), "no memory besides"


def test_another_role_s_calls_leave_a_gradient_that_is_still_to_be_read():
    ours, theirs = [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]
    sums = Sums(ours)
    sums.add(ours, [0], lambda: sums.places[0].add_(1.0))
    sums.add(theirs, [0], lambda: sums.places[0].add_(5.0))
    assert (ours[0].grad.tolist(), theirs[0].grad.tolist()) == ([1.0] * 2, [5.0] * 2)


def pass_of(net, x, places):
    """One pass of a loss of which the last weight is no part; which gradients arrived, and what was launched."""
    leaves = [nn.Parameter(weight.detach()) for weight in net]
    arriving = Arriving(leaves, places)
    *used, _ = leaves
    with Operations() as operations:
        ((x * used[0]).tanh() @ used[1] + used[2]).float().square().sum().backward()
        arriving.add()
    assert all(leaf.grad is None for leaf in leaves)
    return arriving.reached, operations.counted


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_gradients_in_half_precision_arrive_exactly_and_together(at_once, monkeypatch):
    monkeypatch.setattr(rooms, "AT_ONCE", at_once)
    torch.manual_seed(0)
    net = [
        nn.Parameter(torch.randn(8).bfloat16()),
        nn.Parameter(torch.randn(8, 4).bfloat16()),
        *map(nn.Parameter, (torch.randn(4), torch.randn(3).bfloat16())),
    ]
    for weight in net:
        weight.grad_dtype = torch.float32
    places = [torch.zeros(weight.shape) for weight in net]
    for seed in range(3):
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()
        reached, counted = pass_of(net, x, places)
        assert sorted(reached) == [0, 1, 2]
        together = counted["aten._foreach_add_.List"]
        assert together == (3 if at_once == 1 else 2), "one launch a dtype"
        ((x * net[0]).tanh() @ net[1] + net[2]).float().square().sum().backward()
    assert all(torch.equal(place, weight.grad) for place, weight in zip(places, net[:3], strict=False))
    assert not places[3].any()
