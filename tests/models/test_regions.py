"""Regions of a network: which blocks they are, and that compiled ones compute and are copied as written ones."""

import copy
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import LEVELS, SMALL, Compiler, compiling
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.networks import SIZES, Size
from fastgen.errors import UserError
from fastgen.models import regions
from fastgen.models.recompute import computed_again, enable_checkpointing
from fastgen.models.regions import Recompilations, as_written, compile_regions, find_regions, layer_to_hook


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    with compiling() as found:
        yield found


def network() -> nn.Module:
    torch.manual_seed(0)
    return SMALL.built(torch.device("cpu"), torch.float32).requires_grad_(False)


def said(net: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = net(x, torch.full((len(x),), 500.0), torch.zeros(len(x), dtype=torch.long)).sample
    return output


def halved(net: nn.Module) -> nn.Module:
    """A copy with other weights."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    return twin


# Which blocks


@pytest.mark.parametrize(
    ("size", "expected", "structures", "share"),
    [
        (SIZES["sdxl"], {"BasicTransformerBlock": 70}, 2, 0.8),
        (SIZES["cifar"], {"ResnetBlock2D": 21, "Attention": 7}, 3, 0.8),
        (SMALL, {"ResnetBlock2D": 5}, 3, 0.8),
    ],
    ids=["sdxl", "cifar", "small"],
)
def test_regions_are_the_blocks_that_repeat_or_all(size: Size, expected: dict[str, int], structures: int, share: float):
    net = size.built(torch.device("meta"), torch.bfloat16)
    found = find_regions(net)
    assert Counter(type(block).__name__ for block in found.values()) == expected
    assert len({regions._structure(block) for block in found.values()}) == structures
    inside = sum(parameter.numel() for block in found.values() for parameter in block.parameters())
    assert inside > share * sum(parameter.numel() for parameter in net.parameters())


def test_blocks_of_structures_that_are_rare_are_regions_where_all_are_asked_for():
    for size, rare in ((SIZES["sdxl"], {"ResnetBlock2D": 17}), (SIZES["cifar"], {"ResnetBlock2D": 2, "Attention": 1})):
        net = size.built(torch.device("meta"), torch.bfloat16)
        often, every = find_regions(net), find_regions(net, every=True)
        assert often.items() < every.items()
        assert Counter(type(every[name]).__name__ for name in every.keys() - often.keys()) == rare


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (
            "cifar",
            {"DownBlock2D": 2, "AttnDownBlock2D": 1, "UNetMidBlock2D": 1, "AttnUpBlock2D": 1, "UpBlock2D": 2}
            | {"GroupNorm": 1},
        ),
        ("sdxl", {"DownBlock2D": 1, "UpBlock2D": 1, "BasicTransformerBlock": 70, "ResnetBlock2D": 12, "GroupNorm": 12}),
        ("wan", {"WanTransformerBlock": 30}),
    ],
)
def test_levels_without_stacks_of_blocks_are_regions_where_they_are_asked_for(size: str, expected: dict[str, int]):
    net = SIZES[size].built(torch.device("meta"), torch.bfloat16)
    kinds = Counter(type(block).__name__ for block in find_regions(net, every=True, levels=True).values())
    assert kinds == expected


def test_a_level_whose_layers_are_read_or_computed_again_is_left_in_blocks():
    net = LEVELS.built(torch.device("meta"), torch.bfloat16)
    levels = find_regions(net, ["mid_block", "up_blocks.0"], every=True, levels=True)
    assert list(levels) == [
        "down_blocks.0",
        "down_blocks.1",
        "up_blocks.0",
        "up_blocks.1",
        "mid_block",
        "conv_norm_out",
    ]
    read = find_regions(net, ["up_blocks.0.resnets.1"], every=True, levels=True)
    assert levels.keys() - read.keys() == {"up_blocks.0"}
    assert all(name.startswith("up_blocks.0.") for name in read.keys() - levels.keys())
    enable_checkpointing(net)
    blocks = find_regions(net, every=True, levels=True)
    assert blocks == find_regions(net, every=True) | {"conv_norm_out": net.conv_norm_out}


def test_a_region_ends_at_a_layer_that_is_read():
    net, block = network(), "mid_block.resnets.0"
    assert block in find_regions(net, [block])
    assert block not in find_regions(net, [f"{block}.conv1"])
    assert len(find_regions(net, [f"{block}.conv1"])) == len(find_regions(net)) - 1
    compile_regions(net)
    assert layer_to_hook(net, block) is net.get_submodule(block)
    with pytest.raises(ValueError, match=r"mid_block.resnets.0.conv1 lies within the compiled region mid_block.resn"):
        layer_to_hook(net, f"{block}.conv1")


def test_a_network_without_blocks_is_not_compiled():
    with pytest.raises(UserError, match=r"train.compile is on, and Linear has no stack of blocks"):
        compile_regions(nn.Linear(1, 1))


def test_what_is_compiled_is_kept_where_one_is_told_or_with_what_else_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    compile_regions(network())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_regions(network())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


# What they compute


def test_equal_blocks_are_compiled_once_and_copies_compute_with_their_own_weights(compiler: Compiler):
    net, x = network(), torch.randn(2, 3, 8, 8)
    expected, expected_of_half = said(net, x), said(halved(net), x)
    compile_regions(net)
    assert torch.equal(said(net, x), expected)
    assert compiler.count == 3 < len(find_regions(net)) == 5
    assert torch.equal(said(halved(net), x), expected_of_half)
    for part in net.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.detach(), requires_grad=False))
    said(net, x)
    assert compiler.count == 3


def test_a_block_that_keeps_its_compiled_forward_would_answer_with_the_weights_it_was_copied_from(compiler: Compiler):
    """What the test above would find, had regions an attribute of their own instead of a class."""
    net, x = network(), torch.randn(2, 3, 8, 8)
    expected = said(halved(net), x)
    for block in find_regions(net).values():
        block.forward = torch.compile(block.forward, dynamic=False)
    assert not torch.allclose(said(halved(net), x), expected, atol=1e-3)


def test_hooks_of_a_compiled_block_are_called(compiler: Compiler):
    net, x, seen = network(), torch.randn(2, 3, 8, 8), list[Tensor]()
    block = net.get_submodule("mid_block.resnets.0")
    for compiled in (False, True):
        if compiled:
            compile_regions(net)
        hook = block.register_forward_hook(lambda _module, _args, output: seen.append(output))
        said(net, x)
        hook.remove()
        said(net, x)
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_written_blocks_have_forward_and_second_derivatives(compiler: Compiler):
    net, x = network(), torch.randn(2, 3, 8, 8)

    def derivatives() -> tuple[Tensor, Tensor]:
        with as_written(), sdpa_kernel(SDPBackend.MATH):
            rate = torch.func.jvp(lambda x: said(net, x), (x,), (torch.ones_like(x),))[1]
            given = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(said(net, given).square().mean(), given, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), given)
        return rate, second

    expected = derivatives()
    compile_regions(net)
    said(net, x.clone().requires_grad_())
    assert all(torch.equal(*pair) for pair in zip(derivatives(), expected, strict=True))

    def of_compiled() -> Tensor:  # a release of PyTorch refuses the first derivative or the second
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(said(net, given).square().mean(), given, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), given)[0]

    with pytest.raises(RuntimeError):
        of_compiled()


def test_weights_that_are_thawed_in_place_get_gradients_again(compiler: Compiler):
    """Blocks that were left out while weights were frozen come first when they are computed again."""
    settings = torch._dynamo.config
    skipped = {name: True for name in regions.SKIPPED_GUARDS if hasattr(settings, name)}
    net = nn.Sequential(nn.Linear(2, 2), nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in "ab"))

    def called(blocks: int, x: Tensor) -> Tensor:
        x = net[0](x)
        for block in net[1][:blocks]:  # type: ignore[index]
            x = computed_again(block, x)
        return x.sum()

    with settings.patch(skipped):
        compile_regions(net)
        assert not any(getattr(settings, name) for name in skipped), "newer versions look at weights all the same"
        for _ in range(2):
            net.requires_grad_(False)
            called(1, torch.ones(3, 2, requires_grad=True)).backward()
            net.requires_grad_(True)
            (called(2, torch.ones(3, 2)) + called(1, torch.ones(3, 2))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_thread_of_its_own_compiles_as_many_forms(compiler: Compiler):
    """Where a GPU differentiates, PyTorch computes blocks again in such a thread, with settings of its own."""
    block, forms = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))]), 10
    compile_regions(block)
    thread = threading.Thread(target=lambda: [block[0](torch.zeros(rows, 2)) for rows in range(2, 2 + forms)])
    thread.start()
    thread.join()
    assert compiler.count == forms


def test_what_is_compiled_once_all_should_be_known_is_told_with_its_guard(compiler: Compiler):
    net, recompilations = network(), Recompilations(watched=True)
    compile_regions(net)
    told = []
    for rows in (1, 2, 2, 3, 3):
        with recompilations.cycle() as reasons:
            said(net, torch.randn(rows, 3, 8, 8))
        told.append(reasons)
    assert [len(reasons) for reasons in told] == [0, 0, 0, 3, 0]
    assert all(reason.startswith("ResnetBlock2D (") and "expected 2, actual 3" in reason for reason in told[3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_images_come_channels_last_into_every_region_behind_norms_that_are_not_compiled(compiler: Compiler):
    deep = {**SMALL.settings, "layers_per_block": 4}
    net = replace(SMALL, settings=deep).built(torch.device("cuda"), torch.bfloat16)
    compile_regions(net)
    found = find_regions(net)
    assert not any(name.startswith("mid_block") for name in found)
    formats = dict[str, bool]()
    for name, block in found.items():

        def note(_module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            formats[name] = args[0].is_contiguous(memory_format=torch.channels_last)

        block.register_forward_pre_hook(note)
    x = torch.randn(2, 3, 8, 8, device="cuda", dtype=torch.bfloat16)
    net(x, torch.full((2,), 500.0, device="cuda"), torch.zeros(2, dtype=torch.long, device="cuda"))
    assert len(formats) == len(found)
    assert all(formats.values())
