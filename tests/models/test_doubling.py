"""Images of twice the resolution in compiled code: the same numbers, by copies instead of indices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import UpBlock2D
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule
from torch.nn.functional import interpolate

from fastgen.models import regions
from fastgen.models.doubling import DoublingAsCopies


def changed(function: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[Any]]:
    """The function with its graph changed before it is differentiated, and what that graph calls."""
    called: list[Any] = []

    def compiler(graph: GraphModule, _: Any) -> Any:
        DoublingAsCopies()(graph.graph)
        graph.graph.lint()
        graph.recompile()
        called.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(function, backend=compiler), called


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    weights = torch.arange(y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("how", [{"mode": "nearest"}, {}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_doubles_by_copies_of_rows_and_columns(how: dict[str, str], layout: torch.memory_format):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout)
    doubled = partial(interpolate, scale_factor=2.0, **how)
    function, called = changed(lambda x: doubled(x.sin()).cos())
    found, expected = with_gradient(function, x), with_gradient(lambda x: doubled(x.sin()).cos(), x)
    assert interpolate not in called
    assert "expand" in called
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-14, atol=0)


def test_of_two_doublings_in_a_row_both_are_copies():
    def twice(x: Tensor) -> Tensor:
        return interpolate(interpolate(x.sin(), scale_factor=2.0), scale_factor=2.0)

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    function, called = changed(twice)
    found, expected = with_gradient(function, x), with_gradient(twice, x)
    assert interpolate not in called
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((2, 3, 4, 4), {"scale_factor": 2.0, "mode": "bilinear"}),
        ((2, 3, 4, 4), {"scale_factor": 3.0, "mode": "nearest"}),
        ((2, 3, 4, 4), {"scale_factor": (2.0, 1.0)}),
        ((2, 3, 4, 4), {"size": (7, 7)}),
        ((2, 3, 4), {"scale_factor": 2.0}),
        ((1, 2, 3, 4, 4), {"scale_factor": 2.0}),
    ],
    ids=["blends", "thrice", "one side", "to a size", "a line", "a video"],
)
def test_what_does_not_double_an_image_stays(shape: tuple[int, ...], how: dict[str, Any]):
    x = torch.randn(shape)
    function, called = changed(partial(interpolate, **how))
    assert torch.equal(function(x), interpolate(x, **how))
    assert interpolate in called


@pytest.mark.slow
def test_no_gradient_of_a_compiled_level_is_scattered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regions, "_hold_most_convolutions", lambda *_: True)
    torch.manual_seed(0)
    net = nn.Module()
    level = UpBlock2D(8, 8, 8, temb_channels=4, num_layers=1, resnet_groups=4).eval()
    net.up_blocks = nn.ModuleList([level])
    x, skip, emb = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4), torch.randn(2, 4)

    def gradients() -> list[Tensor]:
        return [*torch.autograd.grad(level(x, (skip,), emb).square().sum(), [x, *level.parameters()])]

    expected = gradients()
    regions.compile_regions(net, every=True, levels=True)
    found, codes = run_and_get_code(gradients)
    assert len(codes) == 2
    assert not any("index_put" in code for code in codes)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
