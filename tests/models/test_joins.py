"""Gradients of joined images: the same numbers, each part an image of its own."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import UpBlock2D
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from fastgen.models.joins import PartsApart, PartsAsImages
from fastgen.models.regions import compile_regions

SLICE, CLONE, TANH = torch.ops.aten.slice.Tensor, torch.ops.aten.clone.default, torch.ops.aten.tanh.default


def image(channels: int, seed: int) -> Tensor:
    drawn = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return drawn.to(memory_format=torch.channels_last)


def traced(function: Callable[..., object], *given: Tensor) -> GraphModule:
    graph: GraphModule = make_fx(function, tracing_mode="fake")(*given)
    for change in (PartsAsImages(), PartsApart()):
        change(graph.graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def count(graph: GraphModule, target: object) -> int:
    return sum(node.target is target for node in graph.graph.nodes)


def test_parts_of_a_gradient_are_computed_apart_and_lie_as_images():
    def parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = x * 2
        whole = torch.tanh(seen + y)
        return whole[:, :2], whole[:, 2:], seen.sum()

    given = image(6, 0), image(6, 1)
    graph = traced(parts, *given)
    assert (count(graph, SLICE), count(graph, CLONE), count(graph, TANH)) == (2, 2, 2)
    assert count(graph, torch.ops.aten.add.Tensor) == 2
    assert count(graph, torch.ops.aten.mul.Tensor) == 1, "what something else reads is computed once"
    told = [node.meta["val"] for node in graph.graph.nodes if node.target is CLONE]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in told), "the compiler is told so"
    found = graph(*given)
    assert all(map(torch.equal, found, parts(*given)))
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in found[:2])
    assert not parts(*given)[0].is_contiguous(memory_format=torch.channels_last)


def test_views_on_the_way_to_a_whole_are_written_down_as_well():
    def parts(x: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        whole = x * scale.tanh().unsqueeze(2).unsqueeze(3) + rows.tanh().view(2, 6, 4, 4)
        return whole[:, :2], whole[:, 2:]

    given = image(6, 0), image(6, 1).mean((2, 3)), image(6, 2).flatten(2).contiguous()
    graph = traced(parts, *given)
    assert count(graph, TANH) == 4
    assert all(map(torch.equal, graph(*given), parts(*given)))


@pytest.mark.parametrize(
    "parts",
    [
        lambda whole: (whole[:, :2],),
        lambda whole: (whole[:, :2], whole[:, 2:], whole.sum()),
        lambda whole: ((rows := whole.flatten(2))[:, :2], rows[:, 2:]),
        lambda whole: (whole[:1], whole[1:]),
    ],
    ids=["one window", "the whole is read too", "no image", "other axis"],
)
def test_other_windows_stay(parts: Callable[[Tensor], tuple[Tensor, ...]]):
    graph = traced(lambda x: parts(x.tanh()), image(6, 0))
    assert count(graph, CLONE) == 0
    assert all(map(torch.equal, graph(image(6, 0)), parts(image(6, 0).tanh())))


@pytest.mark.slow
def test_a_level_that_is_compiled_gives_each_skip_an_image_as_its_gradient():
    torch.manual_seed(0)
    level = UpBlock2D(8, 8, 8, temb_channels=4, num_layers=2, resnet_groups=4)
    level.eval()
    told = [image(8, seed).requires_grad_() for seed in range(3)]
    emb = torch.randn(2, 4)

    def gradients() -> list[Tensor]:
        y = level(told[0], (told[1], told[2]), emb)
        return list(torch.autograd.grad(y.square().mean(), [*told, *level.parameters()]))

    expected = gradients()
    compile_regions(nn.ModuleList([level]), levels=True)
    found = gradients()
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(found, expected, strict=True))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found[:3])
