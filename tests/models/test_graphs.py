"""Graphs of a network's calls: the same numbers as the calls themselves, whatever comes between them."""

import pytest
import torch
from torch import nn

from fastgen.models.graphs import Graphs
from fastgen.models.masters import halve
from fastgen.models.recordable import Actor, Invocation, kernel_by_kernel
from fastgen.models.recorded import Differentiated, Sums

CUDA = "cuda"


class Net(nn.Module):
    """Two layers, the second of which has a twin that no call reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, t):
        return self.b(torch.tanh(self.a(x)) * t[:, None])


class Waiter(Net):
    def forward(self, x, t):
        return super().forward(x, t) * t.max().item()


def caller(net, name="net"):
    graphs = Graphs()
    actor = Actor(name, net, tuple(net.parameters()), (), lambda told: net(**told))
    return graphs, lambda x, t: graphs.call(actor, {"x": x, "t": t})


def drawn(seed, grad=False, rows=3):
    stream = torch.Generator(CUDA).manual_seed(seed)
    x, t = torch.randn(rows, 8, generator=stream, device=CUDA), torch.rand(rows, generator=stream, device=CUDA)
    return x.requires_grad_(grad), t


def recorded(graphs):
    return [one for one in graphs._recorded.values() if one is not None]


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


@torch.no_grad()
@pytest.mark.gpu
def test_a_replay_is_the_call():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for seed in range(5):
        x, t = drawn(seed)
        assert torch.equal(call(x, t), net(x, t))
        net.a.weight.mul_(1.1)  # read where it is
    assert len(recorded(graphs)) == 1


@torch.no_grad()
@pytest.mark.gpu
def test_results_outlive_the_next_replay():
    net = Net().to(CUDA)
    _, call = caller(net)
    results = [call(*drawn(seed)) for seed in range(4)]
    for seed, result in enumerate(results):
        assert torch.equal(result, net(*drawn(seed)))


@torch.no_grad()
@pytest.mark.gpu
def test_weights_that_moved_are_recorded_anew():
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(8):
        assert torch.equal(call(*drawn(seed)), net(*drawn(seed)))
        if seed == 3:
            net.a.weight.data = net.a.weight.data.clone() * 2


@torch.no_grad()
@pytest.mark.gpu
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
@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_a_forgotten_call_frees_its_memory():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    call(*drawn(0)).sum().backward()
    for seed in range(6):
        call(*drawn(seed))  # nobody differentiates it
    assert len(graphs._slots) == 1
    assert recorded(graphs)


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_a_recording_that_failed_says_why_and_leaves_the_stream(caplog):
    net = Waiter().to(CUDA)
    _, call = caller(net, "waiter")
    stream = torch.cuda.current_stream()
    for seed in range(4):
        call(*drawn(seed)).sum().backward()
    assert torch.cuda.current_stream() == stream
    assert "previous error" not in caplog.text


@pytest.mark.gpu
def test_frozen_weights_have_no_gradient():
    net = Net().to(CUDA)
    net.b.requires_grad_(False)
    _, call = caller(net)
    for seed in range(4):
        net.zero_grad()
        call(*drawn(seed)).sum().backward()
        assert net.a.weight.grad is not None
        assert net.b.weight.grad is None


@pytest.mark.gpu
def test_a_call_that_waits_for_the_device_stays_as_it_is(caplog):
    net = Waiter().to(CUDA)
    _, call = caller(net, "waiter")
    for seed in range(4):
        with torch.no_grad():
            assert torch.equal(call(*drawn(seed)), net(*drawn(seed)))
    assert "Waiter" in caplog.text


@pytest.mark.gpu
def test_a_derivative_pushed_forward_goes_through_the_call_itself():
    net = Net().to(CUDA)
    _, call = caller(net)
    for seed in range(4):
        x, t = drawn(seed)
        with torch.no_grad():
            call(x, t)
        found, wanted = (torch.func.jvp(lambda x: f(x, t), (x,), (x,))[1] for f in (call, net))  # noqa: B023
        assert torch.equal(found, wanted)


@pytest.mark.gpu
def test_shapes_have_graphs_of_their_own():
    net = Net().to(CUDA)
    graphs, call = caller(net)
    for seed in range(6):
        x, t = drawn(seed, rows=2 + seed % 2)
        with torch.no_grad():
            assert torch.equal(call(x, t), net(x, t))
    assert len(recorded(graphs)) == 2


@pytest.mark.gpu
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
@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_weights_that_no_result_depends_on_have_no_gradient():
    net = Net().to(CUDA)
    graphs = Graphs()
    actor = Actor("first", net, tuple(net.parameters()), (), lambda told: net.a(**told))
    for seed in range(4):
        net.zero_grad()
        graphs.call(actor, {"input": drawn(seed)[0]}).sum().backward()
        assert net.a.weight.grad is not None
        assert net.b.weight.grad is None


@pytest.mark.gpu
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
