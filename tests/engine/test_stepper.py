"""What of an update a kernel makes in one launch, and what PyTorch's own operations make."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config.optimizer import OptimConfig
from fastgen.engine import stepper
from fastgen.engine.optim import RoleOptimizer
from fastgen.engine.rules import AdamW, Pass, Unit
from fastgen.models.masters import halve
from fastgen.models.owned import Place, owned

LARGE = {"first.weight", "blocks.0.weight"}
SMALL = {"first.bias", "blocks.0.bias"}


def network(masters: Any) -> nn.Module:
    """Two large matrices, one of them in a stack, and small vectors, of which those of a norm stay in float32."""
    blocks = nn.ModuleList([nn.Linear(64, 80)])
    net = nn.ModuleDict({"first": nn.Linear(80, 64), "blocks": blocks, "norm": nn.LayerNorm(64)})
    net._keep_in_fp32_modules = ["norm"]
    return net if masters == "fp32" else halve(net, masters, torch.bfloat16)


def left_to_kernels(monkeypatch: pytest.MonkeyPatch, net: nn.Module, name: str) -> tuple[list[set[str]], set[str]]:
    """Names of the parameters of each launch, and of those that an update moves without."""
    launches: list[set[str]] = []
    names = {id(parameter): name for name, parameter in net.named_parameters()}

    def step(weights: Sequence[Tensor], states: Sequence[dict[str, Tensor]], update: Pass) -> None:
        assert [*update.numbers] == [[*names].index(id(weight)) for weight in weights]
        launches.append({names[id(weight)] for weight in weights})

    monkeypatch.setattr(stepper, "kernel_on", lambda device: step)
    optimizer = RoleOptimizer(owned(net), OptimConfig.model_validate({"name": name, "lr": 0.1}), total=1)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter, dtype=parameter.grad_dtype)
    optimizer.step()
    return launches, {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "masters", "wanted"),
    [
        ("adamw", "fp32", []),
        ("adamw", "split", [LARGE | SMALL]),
        ("adamw", "bf16", [LARGE | SMALL]),
        ("adamw8bit", "fp32", [LARGE]),
        ("adamw8bit", "split", [LARGE, SMALL]),
        ("muon", "fp32", []),
        ("muon", "split", [SMALL | {"first.weight"}]),
    ],
)
def test_a_kernel_steps_what_passes_would_copy(
    monkeypatch: pytest.MonkeyPatch, name: str, masters: str, wanted: list[set[str]]
):
    net = network(masters)
    launches, moved = left_to_kernels(monkeypatch, net, name)
    assert launches == wanted, "parameters in float32 are one launch of PyTorch's"
    assert moved == {name for name, _ in net.named_parameters()}.difference(*launches)


def test_all_tensors_are_in_one_launch_however_many_values_they_have(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastgen.models.masters.AT_ONCE", 4096)
    launches, _ = left_to_kernels(monkeypatch, network("split"), "adamw")
    assert launches == [LARGE | SMALL]


def test_weights_that_lie_otherwise_than_their_gradients_are_left_to_passes(monkeypatch: pytest.MonkeyPatch):
    net = network("split")
    first: nn.Linear = net["first"]  # type: ignore[index]
    first.weight.data, first.weight.low = (x.t().contiguous().t() for x in (first.weight.data, first.weight.low))  # type: ignore[attr-defined]
    launches, moved = left_to_kernels(monkeypatch, net, "adamw")
    assert not launches
    assert moved == {name for name, _ in net.named_parameters()}


def test_parts_of_a_tensor_are_left_to_passes():
    flat, rule = torch.zeros(128, dtype=torch.bfloat16), AdamW(("exp_avg_sq",))
    halves = [Unit(0, Place(0, start, torch.Size([8, 8]))) for start in (0, 64)]
    for units, fits in (([Unit(0)], True), (halves, False)):
        assert [bucket.has_kernel for bucket in stepper._in_buckets(rule, units, [flat])] == [fits]
