"""What a graph keeps for its backward pass, counted by hand for networks of few layers."""

import pytest
import torch
from torch import Tensor, nn

from fastgen.models.recompute import computed_again, free_bytes, kept_bytes

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
