"""Graphs of a network's calls: the same numbers as the calls themselves, whatever comes between them."""

import pytest
import torch
from recorded_calls import CUDA, Net, Waiter, caller, drawn, recorded
from torch import nn

from fastgen.models.graphs import Graphs
from fastgen.models.masters import halve
from fastgen.models.recordable import Actor
from fastgen.models.recorded import Differentiated

pytestmark = pytest.mark.gpu


@torch.no_grad()
def test_a_replay_is_the_call():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for seed in range(5):
        x, t = drawn(seed)
        assert torch.equal(call(x, t), net(x, t))
        net.a.weight.mul_(1.1)  # read where it is
    assert len(recorded(graphs)) == 1


@torch.no_grad()
def test_results_outlive_the_next_replay():
    net = Net().to(CUDA)
    _, call = caller(net)
    results = [call(*drawn(seed)) for seed in range(4)]
    for seed, result in enumerate(results):
        assert torch.equal(result, net(*drawn(seed)))


@torch.no_grad()
def test_weights_that_moved_are_recorded_anew():
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(8):
        assert torch.equal(call(*drawn(seed)), net(*drawn(seed)))
        if seed == 3:
            net.a.weight.data = net.a.weight.data.clone() * 2


@torch.no_grad()
def test_weights_that_keep_moving_are_read_by_the_call_itself(caplog):
    net = Net().to(CUDA)
    graphs = Graphs()
    actor = Actor("net", net, (), tuple(net.parameters()), lambda told: net(**told))
    for seed in range(20):
        x, t = drawn(seed)
        assert torch.equal(graphs.call(actor, {"x": x, "t": t}), net(x, t))
        net.a.weight.data = net.a.weight.data.clone() * 1.01
    assert caplog.text.count("weights of") == 1


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_are_those_of_the_call(grad):
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for seed in range(5):
        found = []
        for function in (call, net):
            x, t = drawn(seed, grad=grad)
            net.zero_grad()
            function(x, t).square().sum().backward()
            found.append([p.grad.clone() for p in net.parameters()] + ([x.grad] if grad else []))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), seed
    assert any(isinstance(one, Differentiated) for one in recorded(graphs))


def test_gradients_add_up_over_calls():
    net = Net().to(CUDA)
    _, call = caller(net)
    for _ in range(4):
        found = []
        for function in (call, net):
            net.zero_grad()
            for seed in range(3):
                function(*drawn(seed)).square().sum().backward()
            found.append([p.grad.clone() for p in net.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))


def test_calls_that_wait_for_one_backward_pass_do_not_share_memory():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for _ in range(6):
        found = []
        for function in (call, net):
            net.zero_grad()
            losses = [function(*drawn(seed)).square().sum() for seed in range(3)]
            with torch.no_grad():
                function(*drawn(7))
            torch.stack(losses).sum().backward()
            found.append([p.grad.clone() for p in net.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))
    assert len(graphs._slots) == 3


def test_a_forgotten_call_frees_its_memory():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    call(*drawn(0)).sum().backward()
    for seed in range(6):
        call(*drawn(seed))  # nobody differentiates it
    assert len(graphs._slots) == 1
    assert recorded(graphs)


def test_kernels_are_chosen_before_a_backward_pass_is_recorded(monkeypatch):
    """Two calls of a turn: cuDNN times its kernels in the first backward pass, which no recording may do."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    net = nn.Conv2d(13, 11, 3, padding=1).to(CUDA)  # of no size that another test has timed
    graphs = Graphs()
    actor = Actor("conv", net, tuple(net.parameters()), (), lambda told: net(**told))
    for seed in range(4):
        torch.manual_seed(seed)
        images = torch.randn(2, 5, 13, 17, 19, device=CUDA)
        found = []
        for function in (lambda x: graphs.call(actor, {"input": x}), net):
            net.zero_grad()
            sum(function(x).square().sum() for x in images).backward()
            found.append([p.grad.clone() for p in net.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(*found, strict=True))
    assert len(recorded(graphs)) == 2


def test_a_recording_that_failed_says_why_and_leaves_the_stream(caplog):
    net = Waiter().to(CUDA)
    _, call = caller(net, "waiter")
    stream = torch.cuda.current_stream()
    for seed in range(4):
        call(*drawn(seed)).sum().backward()
    assert torch.cuda.current_stream() == stream
    assert "previous error" not in caplog.text


def test_frozen_weights_have_no_gradient():
    net = Net().to(CUDA)
    net.b.requires_grad_(False)
    _, call = caller(net)
    for seed in range(4):
        net.zero_grad()
        call(*drawn(seed)).sum().backward()
        assert net.a.weight.grad is not None
        assert net.b.weight.grad is None


def test_a_call_that_waits_for_the_device_stays_as_it_is(caplog):
    net = Waiter().to(CUDA)
    _, call = caller(net, "waiter")
    for seed in range(4):
        with torch.no_grad():
            assert torch.equal(call(*drawn(seed)), net(*drawn(seed)))
    assert "Waiter" in caplog.text


def test_a_derivative_pushed_forward_goes_through_the_call_itself():
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(4):
        x, t = drawn(seed)
        with torch.no_grad():
            call(x, t)
        found, wanted = (torch.func.jvp(lambda x: f(x, t), (x,), (x,))[1] for f in (call, net))  # noqa: B023
        assert torch.equal(found, wanted)


def test_shapes_have_graphs_of_their_own():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for seed in range(6):
        x, t = drawn(seed, rows=2 + seed % 2)
        with torch.no_grad():
            assert torch.equal(call(x, t), net(x, t))
    assert len(recorded(graphs)) == 2


def test_a_second_backward_pass_is_refused():
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(2):
        call(*drawn(seed, grad=True)).sum().backward()
    x, t = drawn(3, grad=True)
    (first,) = torch.autograd.grad(call(x, t).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("before", [False, True])
def test_a_gradient_of_the_input_alone_leaves_the_weights_alone(before):
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(5):
        net.zero_grad()
        if before:
            call(*drawn(9, grad=True)).square().sum().backward()
        kept = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        x, t = drawn(seed, grad=True)
        (found,) = torch.autograd.grad(call(x, t).square().sum(), x)
        (wanted,) = torch.autograd.grad(net(x, t).square().sum(), x)
        assert torch.equal(found, wanted)
        for p, gradient in zip(net.parameters(), kept, strict=True):
            assert p.grad is gradient is None or torch.equal(p.grad, gradient)


def test_roles_with_gradients_at_once_keep_them_apart():
    nets = [Net().to(CUDA), Net().to(CUDA)]
    graphs = Graphs()
    actors = [
        Actor(i, net, tuple(net.parameters()), (), lambda told, net=net: net(**told)) for i, net in enumerate(nets)
    ]
    for _ in range(5):
        found = []
        for graphed in (True, False):
            for net in nets:
                net.zero_grad()
            for seed in range(4):
                x, t = drawn(seed)
                actor = actors[seed % 2]
                output = graphs.call(actor, {"x": x, "t": t}) if graphed else actor.net(x, t)
                output.square().sum().backward()
            found.append([p.grad.clone() for net in nets for p in net.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))
    assert len(graphs._sums) == 1


def test_weights_that_no_result_depends_on_have_no_gradient():
    net = Net().to(CUDA)
    graphs = Graphs()
    actor = Actor("first", net, tuple(net.parameters()), (), lambda told: net.a(**told))
    for seed in range(4):
        net.zero_grad()
        graphs.call(actor, {"input": drawn(seed)[0]}).sum().backward()
        assert net.a.weight.grad is not None
        assert net.b.weight.grad is None


def test_gradients_of_weights_in_bf16_add_up_in_their_own_dtype():
    net = halve(Net().to(CUDA), "split", torch.float32)
    _, call = caller(net)
    found = []
    for seed in (0, 1, 2, 2):
        net.zero_grad()
        for _ in range(2):
            call(*(x.bfloat16() for x in drawn(seed))).float().square().sum().backward()
        found.append(net.a.weight.grad.clone())
    net.zero_grad()
    for _ in range(2):
        net(*(x.bfloat16() for x in drawn(2))).float().square().sum().backward()
    assert found[0].dtype == torch.float32
    assert torch.equal(found[3], net.a.weight.grad)
