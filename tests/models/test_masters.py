"""Weights in bf16: what is split is put together bit for bit, and what is rounded by chance is right on average."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.watches import Operations
from fastgen.models.masters import assign, halve, in_buckets, rounded, values_of

TIE = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF], dtype=torch.int32).view(torch.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    net[2].weight = nn.Parameter(torch.randn(3, 5) * torch.logspace(-30, 30, 15).view(3, 5))
    net._keep_in_fp32_modules = ["1"]
    return net


@pytest.mark.parametrize("masters", ["split", "bf16"])
def test_the_numbers_that_are_trained_are_told_in_few_launches(masters):
    net = halve(nn.Sequential(*(nn.Linear(8, 8) for _ in range(40))), masters, torch.float32)
    parameters = [*net.parameters()]
    with Operations() as seen:
        values = values_of(parameters)
    assert seen.counted.total() < 12
    assert all(value.dtype == torch.float32 for value in values)
    assert all(torch.equal(value.bfloat16(), p) for value, p in zip(values, parameters, strict=True))


def test_a_split_network_computes_in_bf16_and_its_state_is_in_float32():
    whole, split = network(), halve(network(), "split", torch.float32)
    state = split.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())
    kept = {name: p.dtype for name, p in split.named_parameters() if p.dtype == torch.float32}
    assert [*kept] == ["1.weight", "1.bias"]
    assert torch.equal(split[0].weight, whole[0].weight.bfloat16())
    other = {name: torch.randn_like(value) for name, value in state.items()}
    split.load_state_dict(other)
    assert all(torch.equal(value, other[name]) for name, value in split.state_dict().items())
    assert torch.equal(split[0].weight, other["0.weight"].bfloat16())
    with pytest.raises(RuntimeError, match="size mismatch"):
        split.load_state_dict({**other, "0.weight": torch.zeros(5, 8)})


def test_ties_are_split_too():
    net = halve(nn.ParameterDict({"w": nn.Parameter(torch.cat([TIE, -TIE]))}), "split", torch.float32)
    assert torch.equal(values_of([net["w"]])[0], torch.cat([TIE, -TIE]))
    assert torch.equal(net["w"][:3].float(), torch.tensor([1 + 2**-7, 1 + 2**-6, 1.0]))


def test_gradients_add_up_in_the_dtype_asked_for():
    for dtype, total in ((torch.float32, 1 + 2**-10), (torch.bfloat16, 1.0)):
        net = halve(nn.ParameterDict({"w": nn.Parameter(torch.ones(1))}), "bf16", dtype)
        for part in (1.0, 2**-10):
            (net["w"] * part).sum().backward()
        assert (net["w"].grad.dtype, net["w"].grad.item()) == (dtype, total)


def means(values: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Mean of many roundings of each value, and the standard error of it."""
    found = rounded(values[:, None].expand(-1, draws).contiguous(), torch.Generator().manual_seed(0)).double()
    return found.mean(dim=1), found.std(dim=1) / math.sqrt(draws)


def test_a_weight_is_rounded_right_on_average_and_never_if_it_is_a_bf16():
    values = torch.cat([torch.randn(20, generator=torch.Generator().manual_seed(1)), TIE, torch.tensor([1e-39, 0.0])])
    mean, error = means(values, 20_000)
    assert ((mean - values.double()).abs() <= 4.5 * error).all()
    assert (error[:20] < 1e-4 * values[:20].abs()).all()
    exact = values.bfloat16()
    for seed in range(3):
        assert torch.equal(rounded(exact.float(), torch.Generator().manual_seed(seed)), exact)


def test_many_small_updates_add_up_where_rounding_to_the_nearest_stands_still():
    weight, rng = nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16)), torch.Generator().manual_seed(0)
    still = nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    for _ in range(100):  # each 1/80 of the distance to the next bf16
        assign([weight], [values_of([weight])[0] + 1e-4], rng=rng)
        assign([still], [values_of([still])[0] + 1e-4])
    assert float(weight.detach().float().mean()) == pytest.approx(1.01, abs=3e-4)
    assert float(still.detach().float().mean()) == 1


def test_buckets_hold_everything_once():
    tensors = [torch.empty(size, device="meta") for size in (2**23, 2**23, 1, 2**25, 2**24)]
    found = [[tensor.numel() for tensor in bucket] for bucket in in_buckets(tensors, lambda tensor: tensor)]
    assert found == [[2**23, 2**23], [1], [2**25], [2**24]]
