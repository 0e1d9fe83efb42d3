"""What a graph keeps for its backward pass, counted by hand for networks of few layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.models.recompute import computed_again, enable_checkpointing, free_bytes, kept_bytes

ROWS, WIDTH, FLOAT = 3, 5, 4


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid())


def kept(net: nn.Module, x: Tensor) -> int:
    return kept_bytes(lambda: net(x), there=[*net.parameters(), x])


def test_what_is_kept_are_the_inputs_of_layers_and_the_outputs_of_activations():
    """The first activation's output is also the second layer's input, and counts once; weights and x are there."""
    assert kept(layers(), torch.randn(ROWS, WIDTH)) == 2 * ROWS * WIDTH * FLOAT


def test_memory_that_was_freed_and_taken_again_counts_again():
    net = nn.Sequential(*[layers() for _ in range(20)])
    assert kept(net, torch.randn(ROWS, WIDTH)) == 40 * ROWS * WIDTH * FLOAT


def test_frozen_layers_keep_nothing_before_the_first_that_is_trained():
    net = layers().requires_grad_(False)
    assert kept(net, torch.randn(ROWS, WIDTH)) == 0
    net[2].requires_grad_(True)
    assert kept(net, torch.randn(ROWS, WIDTH)) == 2 * ROWS * WIDTH * FLOAT


def test_parameters_are_no_memory_of_the_graph_s_own():
    net, x = layers(), torch.randn(ROWS, WIDTH, requires_grad=True)
    assert kept_bytes(lambda: net(x), there=[x]) == kept(net, x)


class Blocks(nn.Module):
    """A stack of blocks that supports gradient checkpointing as Diffusers' networks do."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([layers() for _ in range(count)])
        self.call: Any = lambda block, *args: block(*args)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.call = gradient_checkpointing_func

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.call(block, x)
        return x


@pytest.mark.parametrize(("every", "again"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4])])
def test_every_so_many_th_block_is_computed_again_and_gradients_are_the_same(every: int, again: list[int]):
    torch.manual_seed(0)
    net, x = Blocks(6).double(), torch.randn(ROWS, WIDTH, dtype=torch.double, requires_grad=True)
    expected = torch.autograd.grad(net(net(x)).square().sum(), [x, *net.parameters()])
    calls = [0] * 6
    for i, block in enumerate(net.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    enable_checkpointing(net, every=every)
    found = torch.autograd.grad(net(net(x)).square().sum(), [x, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert calls == [4 if i in again else 2 for i in range(6)]


def test_blocks_that_are_computed_again_keep_nothing_within():
    net, x = layers(), torch.randn(ROWS, WIDTH, requires_grad=True)
    assert kept_bytes(lambda: computed_again(net, x), there=[*net.parameters(), x]) == 0


def test_a_measured_graph_has_no_backward_pass():
    net, x, results = layers(), torch.randn(ROWS, WIDTH), list[Tensor]()
    with torch.no_grad():
        kept_bytes(lambda: results.append(net(x)))
    with pytest.raises(RuntimeError, match="this graph was measured"):
        results[0].sum().backward()


def test_the_host_has_room():
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.gpu
def test_a_card_has_as_much_less_as_is_taken():
    device = torch.device("cuda")
    before = free_bytes(device)
    taken = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) == pytest.approx(2**28, abs=2**24)
    del taken
    assert free_bytes(device) == pytest.approx(before, abs=2**24)
