"""Modules and optimizers put back from saved tensors: exactly, or not at all."""

import copy
import json

import pytest
import torch
from rounding import gap
from torch import nn

from benchmarks.watches import Operations
from fastgen.engine.checkpoint import Snapshot, load, save
from fastgen.engine.fitting import load_module
from fastgen.engine.restore import (
    OptimizerSnapshot,
    in_pieces,
    optimizer_snapshot,
    put_together,
    restore_optimizer,
)
from fastgen.errors import CheckpointError
from fastgen.models.owned import Owned, Place

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FactoredRMS(torch.optim.Optimizer):
    """Adafactor as Transformers keeps it: factored moments, Python scalars, float32 whatever the weights."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "RMS": 0.0, "warm": False, "none": None}
                    state["row"] = torch.zeros(parameter.shape[:1], dtype=torch.float32, device=parameter.device)
                    state["seen"] = torch.zeros(parameter.shape, dtype=torch.int64, device=parameter.device)
                state["step"] += 1
                state["warm"] = state["step"] > 3
                state["RMS"] = 0.9 * state["RMS"] + parameter.float().norm().item()
                state["row"].mul_(0.99).add_(parameter.grad.float().square().flatten(1).mean(1))
                state["seen"] += 1
                scale = (state["row"][:, None] / state["seen"] + state["RMS"]).rsqrt()
                parameter.sub_((group["lr"] * scale * parameter.grad).to(parameter.dtype))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), foreach=False),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "factored rms": lambda p: FactoredRMS(p, lr=1e-2),
}


def network(seed=0, dtype=torch.float32, width=6, device="cpu"):
    torch.manual_seed(seed)
    layers = nn.Linear(4, width, bias=False), nn.Tanh(), nn.Linear(width, 2, bias=False)
    return nn.Sequential(*layers).to(device, dtype)


def grouped(module):
    first, last = module.parameters()
    return [{"params": [first]}, {"params": [last], "lr": 3e-3}]


def train(module, optimizer, steps):
    for step in steps:
        rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(rows.to(next(module.parameters()))).square().mean().backward()
        optimizer.step()


def through_disk(root, module, optimizer):
    """Module and optimizer state after a checkpoint was written and read."""
    taken = optimizer_snapshot(optimizer)
    tensors = {"generator": module.state_dict(), "optimizer": taken.tensors}
    found = load(save(root, 5, Snapshot(tensors, {"groups": taken.groups}), keep=1))
    return found.tensors["generator"], OptimizerSnapshot(
        found.tensors["optimizer"], json.loads(json.dumps(found.state["groups"]))
    )


def assert_same_state(one, other):
    left, right = one.state_dict(), other.state_dict()
    assert left["param_groups"] == right["param_groups"]
    for group, twin in zip(left["param_groups"], right["param_groups"], strict=True):
        assert {name: type(value) for name, value in group.items()} == {n: type(v) for n, v in twin.items()}
    assert left["state"].keys() == right["state"].keys()
    for index, state in left["state"].items():
        assert state.keys() == right["state"][index].keys()
        for name, value in state.items():
            twin = right["state"][index][name]
            assert type(value) is type(twin), name
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.device) == (twin.dtype, twin.device), name
                assert gap(value, twin) <= 1e-4, name
            else:
                assert value == twin, name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_a_checkpoint_and_five_more_equal_ten(tmp_path, name, dtype, device):
    straight = network(dtype=dtype, device=device)
    optimizer = OPTIMIZERS[name](grouped(straight))
    train(straight, optimizer, range(5))
    weights, taken = through_disk(tmp_path, straight, optimizer)
    train(straight, optimizer, range(5, 10))

    resumed = network(seed=1, dtype=dtype, device=device)
    fresh = OPTIMIZERS[name](grouped(resumed))
    load_module(resumed, weights, what="generator")
    restore_optimizer(fresh, taken)
    train(resumed, fresh, range(5, 10))

    assert_same_state(optimizer, fresh)
    for left, right in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert gap(left, right) <= 1e-4


def test_a_snapshot_is_independent_of_the_optimizers_it_came_from_and_went_to():
    module = network()
    optimizer = OPTIMIZERS["factored rms"](grouped(module))
    train(module, optimizer, range(2))
    taken = optimizer_snapshot(optimizer)
    before = copy.deepcopy(taken)
    train(module, optimizer, range(2, 4))
    restore_optimizer(optimizer, taken)
    train(module, optimizer, range(2, 4))
    assert taken.groups == before.groups
    assert all(torch.equal(taken.tensors[key], value) for key, value in before.tensors.items())


def test_an_optimizer_before_its_first_step_is_restored_empty():
    taken = optimizer_snapshot(OPTIMIZERS["adamw"](grouped(network())))
    assert taken.tensors == {}
    module = network()
    optimizer = OPTIMIZERS["adamw"](grouped(module))
    train(module, optimizer, range(2))
    restore_optimizer(optimizer, taken)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("scaled", [False, True])
def test_a_tensor_of_many_parameters_is_made_once_and_not_for_each_of_them(scaled):
    """SDXL's adapters are 1,588 parameters of one tensor of 0.7 GB: a tensor for each was five minutes of zeros."""
    count, size = 50, 256
    whole = nn.Parameter(torch.zeros(count * size))
    parts = Owned((whole,), {str(i): Place(0, i * size, torch.Size([size])) for i in range(count)})
    moments = {"0.exp_avg_sq": torch.arange(count * size).float(), "0.step": torch.tensor(3.0)}
    if scaled:
        moments = {"0.exp_avg_sq_scales": torch.arange(count).float(), "0.step": torch.tensor(3.0)}
    packed = OptimizerSnapshot(moments, [{"settings": {}, "parameters": [{"shape": [count * size], "scalars": {}}]}])
    pieces = in_pieces(packed, parts)
    assert len(pieces.groups[0]["parameters"]) == count
    with Operations() as seen:
        found = put_together(pieces, parts)
    assert found.groups == packed.groups
    assert found.tensors.keys() == moments.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in moments.items())
    assert seen.counted["aten.new_zeros.default"] == 1


def test_the_learning_rate_of_the_checkpoint_wins():
    source = torch.optim.AdamW(grouped(network()), lr=1.0, betas=(0.5, 0.6))
    source.param_groups[0]["initial_lr"] = 2.0
    target = torch.optim.AdamW(grouped(network()), lr=9.0)
    restore_optimizer(target, optimizer_snapshot(source))
    assert [group["lr"] for group in target.param_groups] == [1.0, 3e-3]
    assert target.param_groups[0]["betas"] == (0.5, 0.6)
    assert target.param_groups[0]["initial_lr"] == 2.0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (lambda: list(network().parameters()), "2 parameter groups, the optimizer 1"),
        (lambda: grouped(network(width=7)), r"parameter 0 is \[6, 4\] in the checkpoint, \[7, 4\] in"),
        (
            lambda: [grouped(network())[0], {"params": list(network().parameters())}],
            "group 1 has 1 parameters in the checkpoint, 2",
        ),
    ],
    ids=["groups", "shape", "count"],
)
def test_an_optimizer_of_other_parameters_is_refused_unchanged(parameters, message):
    module = network()
    optimizer = OPTIMIZERS["adamw"](grouped(module))
    train(module, optimizer, range(2))
    other = torch.optim.AdamW(parameters(), lr=0.5)
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer(other, optimizer_snapshot(optimizer))
    assert len(other.state) == 0
    assert other.param_groups[0]["lr"] == 0.5


def test_ten_of_many_differences_are_named():
    source = torch.optim.SGD([nn.Parameter(torch.zeros(2)) for _ in range(12)], lr=1.0)
    target = torch.optim.SGD([nn.Parameter(torch.zeros(3)) for _ in range(12)], lr=1.0)
    with pytest.raises(CheckpointError) as caught:
        restore_optimizer(target, optimizer_snapshot(source))
    assert "parameter 9 is" in str(caught.value)
    assert "parameter 10 is" not in str(caught.value)
    assert "and 2 more (12 in all)" in str(caught.value)


def test_states_that_are_lists_of_tensors_are_refused():
    module = network()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=3)

    def loss():
        optimizer.zero_grad()
        value = module(torch.ones(3, 4)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(TypeError, match="keeps a list"):
        optimizer_snapshot(optimizer)


def renamed(tensors):
    return {key.replace("0.weight", "0.kernel"): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"0.weight": t["0.weight"]}, r"generator: missing: 2\.weight\. Resume"),
        (renamed, r"missing: 0\.weight; unexpected: 0\.kernel\."),
        (
            lambda t: t | {"2.weight": torch.ones(2, 9)},
            r"wrong shape: 2\.weight \(checkpoint \[2, 9\], module \[2, 6\]\)",
        ),
        (
            lambda t: {key: value.double() for key, value in t.items()},
            r"wrong dtype: 0\.weight \(checkpoint torch\.float64, module torch\.float32\), 2",
        ),
        (lambda t: {key: value.long() for key, value in t.items()}, "wrong dtype"),
        (
            lambda t: t | {f"extra.{i}": torch.ones(1) for i in range(13)},
            r"extra\.9 and 3 more \(13 in all\)",
        ),
    ],
    ids=["missing", "renamed", "shape", "float64", "int64", "many"],
)
def test_a_module_of_another_make_is_refused_unchanged(change, message):
    module = network()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_module(module, change(network(seed=1).state_dict()), what="generator")
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_wider_module_takes_the_exact_values():
    source = network(dtype=torch.bfloat16)
    module = network(seed=1)
    load_module(module, source.state_dict(), what="ema")
    assert all(torch.equal(module.state_dict()[key], v.float()) for key, v in source.state_dict().items())


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dtype_that_would_round_is_refused(saved, narrow):
    module = network(dtype=narrow)
    if saved == narrow:
        load_module(module, network(dtype=saved).state_dict(), what="ema")
    else:
        with pytest.raises(CheckpointError, match="wrong dtype"):
            load_module(module, network(dtype=saved).state_dict(), what="ema")


def test_tied_weights_and_buffers_survive_the_disk(tmp_path):
    def tied(seed):
        module = network(seed=seed, width=4)
        module.append(nn.BatchNorm1d(2))
        module[2] = nn.Linear(4, 4, bias=False)
        module[2].weight = module[0].weight
        module[3] = nn.BatchNorm1d(4)
        return module

    source, target = tied(0), tied(1)
    source(torch.randn(5, 4))
    found = load(save(tmp_path, 1, Snapshot({"generator": source.state_dict()}, {}), keep=1))
    load_module(target, found.tensors["generator"], what="generator")
    assert target[2].weight is target[0].weight
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert target[3].num_batches_tracked.item() == 1
