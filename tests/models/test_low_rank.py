"""Layers with a low-rank update against peft's, in float64: outputs, gradients, forward and second derivatives."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd

from fastgen.models.low_rank import DOWN, UP, factor_shapes, make_adaptable

SCALE, RANK = 3.0, 2
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "tokens": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "places": (lambda: nn.Linear(5, 4), (2, 3, 2, 5)),
    "window": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 6, 5)),
    "pointwise": (lambda: nn.Conv2d(3, 4, 1, bias=False), (2, 3, 4, 4)),
    "video": (lambda: nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 3, 2, 4, 4)),
}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our layer and peft's with the same values in float64, and an input of theirs."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double().requires_grad_(False)
    peft = nn.Sequential(copy.deepcopy(layer))
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=["0"]), peft)
    make_adaptable(layer)
    values = [drawn(*shape, seed=i) for i, shape in enumerate(factor_shapes(layer, RANK))]
    for slot, value, factor in zip((DOWN, UP), values, (1.0, SCALE), strict=True):
        theirs = getattr(peft[0], slot)["default"]
        theirs.weight = nn.Parameter(value)
        layer._parameters[slot] = nn.Parameter(factor * value)
    return layer, peft, drawn(*shape, seed=9)


def factors(layer: nn.Module) -> list[nn.Parameter]:
    return [layer._parameters[slot] for slot in (DOWN, UP)]


def theirs(peft: nn.Module) -> list[nn.Parameter]:
    return [getattr(peft[0], slot)["default"].weight for slot in (DOWN, UP)]


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_pefts(name):
    layer, peft, x = pair(name)
    agree(layer, layer, peft, x)


@pytest.mark.parametrize("name", ["linear", "tokens"])
def test_compiled_code_adds_the_update_in_place(name: str):
    layer, peft, x = pair(name)
    graphs: list[str] = []

    def seen(graph: fx.GraphModule, _: object) -> fx.GraphModule:
        graphs.append(graph.code)
        return graph

    agree(torch.compile(layer, backend=aot_autograd(fw_compiler=seen), fullgraph=True), layer, peft, x)
    assert [code.count("add_product") for code in graphs] == [1, 1], "forward and backward"


def agree(call: Callable[[Tensor], Tensor], layer: nn.Module, peft: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    ours, wanted = call(x), peft(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    weight = drawn(*ours.shape, seed=11)
    found = torch.autograd.grad((ours * weight).sum(), [x, *factors(layer)])
    expected = torch.autograd.grad((wanted * weight).sum(), [x, *theirs(peft)])
    for ours, wanted, factor in zip(found, expected, (1, 1, SCALE), strict=True):
        torch.testing.assert_close(factor * ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_second_derivatives_are_pefts(name):
    layer, peft, x = pair(name)
    tangent = drawn(*x.shape, seed=12)
    for one, other in zip(*(torch.func.jvp(call, (x,), (tangent,)) for call in (layer, peft)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    def steepness(call: nn.Module, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(call(given).square().sum(), given, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), parameters)

    found, expected = steepness(layer, factors(layer)), steepness(peft, theirs(peft))
    for one, other, factor in zip(found, expected, (1, SCALE), strict=True):
        torch.testing.assert_close(factor * one, other, rtol=1e-12, atol=1e-12)


def test_a_layer_without_a_role_is_itself():
    layer, _, x = pair("tokens")
    alone = nn.Linear(5, 4, bias=False).double()
    alone.load_state_dict({"weight": layer.weight})
    layer._parameters.update(lora_A=None, lora_B=None)
    assert torch.equal(layer(x), alone(x))
    assert list(layer.state_dict()) == ["weight"]
    assert isinstance(layer, nn.Linear)
    make_adaptable(layer)  # by a network that shares it once more
    assert torch.equal(copy.deepcopy(layer)(x), alone(x))


class Quantised(nn.Linear):
    """A layer that computes otherwise, and gives out what it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = 2 * super().forward(x)
        return self.kept


def test_a_layer_that_computes_otherwise_does_so_and_keeps_its_own():
    layer = Quantised(5, 4).double().requires_grad_(False)
    x, own = drawn(3, 5, seed=1), None
    own = layer(x)
    make_adaptable(layer)
    down, up = drawn(2, 5, seed=2), drawn(4, 2, seed=3)
    layer._parameters.update(lora_A=nn.Parameter(down), lora_B=nn.Parameter(up))
    torch.testing.assert_close(layer(x), own + x @ down.T @ up.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.kept, own)


def test_a_convolution_pads_its_update_as_itself():
    layer = nn.Conv2d(2, 3, 3, padding=1, dilation=1, padding_mode="circular").double().requires_grad_(False)
    x, weight = drawn(1, 2, 5, 5, seed=1), layer.weight.clone()
    down, up = (drawn(*shape, seed=i) for i, shape in enumerate(factor_shapes(layer, 2), 2))
    whole = copy.deepcopy(layer)
    whole.weight.copy_(weight + (up.flatten(1) @ down.flatten(1)).view_as(weight))
    make_adaptable(layer)
    layer._parameters.update(lora_A=nn.Parameter(down), lora_B=nn.Parameter(up))
    torch.testing.assert_close(layer(x), whole(x), rtol=1e-12, atol=1e-12)
