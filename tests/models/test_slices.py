"""Sharded networks on a mesh of one process, whose blocks' weights are together only while a block is computed."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from families import probed
from reaching import Reaching
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastgen.models.recompute import computed_again, enable_checkpointing
from fastgen.models.sharding import mesh_of, shard, whole

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(net: nn.Module) -> nn.Module:
    copied = copy.deepcopy(net)
    shard(copied, mesh_of(CPU, "full"))
    return copied


def gradients(net: nn.Module) -> list[Tensor]:
    return [whole(p.grad) for p in net.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_that_calls_what_is_in_a_block_is_trained_in_slices(checkpointing):
    pipeline = probed("dit")
    nets = [copy.deepcopy(pipeline.network), sharded(pipeline.network)]
    cond = pipeline.condition(2, labels=torch.tensor([0, 1]))
    found = []
    for net in nets:
        speaker = pipeline.speaking(net).requires_grad_(True)
        if checkpointing:
            enable_checkpointing(net)
        x = torch.randn((2, *pipeline.shape), generator=torch.Generator().manual_seed(0)).requires_grad_()
        for _ in range(2):
            x0 = speaker(x, torch.tensor([0.3, 0.7], dtype=torch.float64), cond).x0
            x0.square().mean().backward()
        found.append([x0.detach(), x.grad, *gradients(net)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert all(isinstance(p, DTensor) for p in nets[1].parameters()), "and its weights are put away"


@pytest.mark.parametrize("called", [None, computed_again], ids=["kept", "again"])
def test_what_is_called_in_a_block_gets_the_gradients_of_all_its_calls(called):
    nets = [Reaching() if called is None else Reaching(called=called)]
    nets.append(sharded(nets[0]))
    x = torch.randn(2, 4)
    found = []
    for net in nets:
        inputs = x.clone().requires_grad_()
        for _ in range(2):
            net(inputs).square().sum().backward()
        with torch.no_grad():
            found.append([net(inputs), inputs.grad, *gradients(net)])
    torch.testing.assert_close(found[1], found[0])
    assert all(isinstance(p, DTensor) for p in nets[1].parameters())
