"""Which calls of a network are recorded as graphs, and where their gradients go."""

import pytest
import torch
from recorded_calls import Net, caller
from torch import nn

from fastgen.models.graphs import Graphs
from fastgen.models.recordable import Actor, Invocation, kernel_by_kernel
from fastgen.models.recorded import Sums


def test_nothing_is_recorded_on_other_devices():
    net = Net()
    graphs, call = caller(net)
    for _ in range(3):
        call(torch.ones(2, 8), torch.ones(2))
    assert not graphs._recorded


def test_other_trained_weights_are_another_kind_of_call():
    net = Net()
    kinds = []
    for frozen in (net.a, net.b):
        net.requires_grad_(True)
        frozen.requires_grad_(False)
        kinds.append(Invocation.of(Actor("net", net, tuple(net.parameters()), (), net), {"x": torch.ones(2, 8)}).kind)
    assert len(set(kinds)) == 2


def test_a_call_that_nobody_differentiates_is_of_another_kind_also_where_no_weight_is_trained():
    net = Net().requires_grad_(False)
    actor, told = Actor("net", net, tuple(net.parameters()), (), net), {"x": torch.ones(2, 8, requires_grad=True)}
    differentiated = Invocation.of(actor, told).kind
    with torch.no_grad():
        assert Invocation.of(actor, told).kind != differentiated


def test_calls_may_be_recorded_again_when_nobody_listens_any_more():
    def plain():
        return Invocation.of(Actor("net", Net(), (), (), Net()), {"x": torch.ones(2, 8)}).plain

    def interrupted():
        with kernel_by_kernel():
            with kernel_by_kernel():
                assert not plain()
            assert not plain(), "the outer one still listens"
            raise RuntimeError("layer")

    with pytest.raises(RuntimeError, match="layer"):
        interrupted()
    assert plain()


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


def test_nothing_is_recorded_before_a_backward_pass_has_gone_by(monkeypatch):
    asked_for = []
    monkeypatch.setattr(Invocation, "recordable", True)
    monkeypatch.setattr(Graphs, "_slot", lambda _: None)
    monkeypatch.setattr(Graphs, "_record", lambda *_: asked_for.append(True))
    _, call = caller(Net())
    one, other = (call(torch.ones(2, 8), torch.ones(2)) for _ in range(2))
    assert not asked_for, "its backward pass has not chosen its kernels"
    (one + other).sum().backward()
    call(torch.ones(2, 8), torch.ones(2))
    assert asked_for
    with torch.no_grad():
        call(torch.ones(2, 8), torch.ones(2))
        assert len(asked_for) == 1, "another kind"
        call(torch.ones(2, 8), torch.ones(2))
    assert len(asked_for) == 2
