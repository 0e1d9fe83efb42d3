"""Which calls of a network are recorded as graphs, and where their gradients go."""

import pytest
import torch
from recorded_calls import Net, caller

from fastgen.models.graphs import Graphs
from fastgen.models.recordable import Actor, Invocation, kernel_by_kernel


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
