"""Optimizers: what each keeps, that it is the update that it says, and that a flag on the device undoes it."""

import copy
import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import small_run
import tiny
import torch
from torch import Tensor, nn

from fastgen.config.lora import LoRAConfig
from fastgen.config.optimizer import OptimConfig
from fastgen.engine import checkpoint, eight_bits, stepper
from fastgen.engine.checkpoint import Snapshot
from fastgen.engine.eight_bits import Blocks
from fastgen.engine.optim import RoleOptimizer
from fastgen.engine.rules import hidden_matrices
from fastgen.models.masters import halve, low_of, values_of
from fastgen.models.owned import owned
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.objectives.trajectory.lcm import LatentConsistency

NAMES = ("adamw", "adamw8bit", "muon")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])]
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "clip": None}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Linear(64, 96), nn.Conv2d(4, 6, 3), nn.Linear(96, 1)])
    return nn.ModuleDict({"first": nn.Linear(8, 64), "blocks": blocks}).to(device)


def optimizer_of(net: nn.Module, name: str, **settings: object) -> RoleOptimizer:
    return RoleOptimizer(owned(net), OptimConfig.model_validate({"name": name, **SETTINGS, **settings}), total=100)


def give_gradients(net: nn.Module, step: int, *, scale: float = 1.0) -> None:
    rng = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=rng).to(parameter.device)


def bits(optimizer: RoleOptimizer) -> dict[str, Tensor]:
    """All that an update changes."""
    held = {f"p{i}": p.detach().clone() for i, p in enumerate(optimizer.parameters)}
    held |= {f"low{i}": low.clone() for i, p in enumerate(optimizer.parameters) if (low := low_of(p)) is not None}
    for i, parameter in enumerate(optimizer.parameters):
        held |= {f"{i}.{name}": value.clone() for name, value in optimizer.optimizer.state[parameter].items()}
    return held


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
def test_adamw_is_pytorchs_and_keeps_no_first_moment_that_is_the_gradient(betas: tuple[float, float], device: str):
    ours, theirs = network(device), network(device)
    optimizer = optimizer_of(ours, "adamw", betas=betas)
    stock = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=betas, eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(50):
        for net in (ours, theirs):
            give_gradients(net, step)
        optimizer.step()
        stock.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    kept = {"step", "exp_avg_sq"} | ({"exp_avg"} if betas[0] else set())
    assert {name for state in optimizer.optimizer.state.values() for name in state} == kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masters", ["fp32", "split", "bf16"])
@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
@pytest.mark.parametrize("name", NAMES)
def test_a_blocked_step_changes_nothing_and_is_not_missed(
    name: str, betas: tuple[float, float], masters: Any, device: str
):
    nets = [network(device) if masters == "fp32" else halve(network(device), masters, torch.float32) for _ in range(2)]
    plain, flagged = (optimizer_of(net, name, betas=betas) for net in nets)
    for step in range(6):
        if step == 3:
            before = bits(flagged)
            give_gradients(nets[1], 99, scale=math.nan)
            flagged.step(blocked=torch.ones((), device=device))
            assert same(before, bits(flagged))
            flagged.updates -= 1  # as a stage counts
        for net in nets:
            give_gradients(net, step)
        plain.step()
        flagged.step(blocked=torch.zeros((), device=device))
    assert same(bits(plain), bits(flagged))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_split_masters_are_fp32_masters_bit_for_bit(name: str, device: str, monkeypatch: pytest.MonkeyPatch):
    """In passes; a kernel's last places are its own (test_kernels)."""
    monkeypatch.setattr(stepper, "kernel_on", lambda device: None)
    nets = [network(device), halve(network(device), "split", torch.float32)]
    optimizers = [optimizer_of(net, name, betas=(0.9, 0.99), clip=20.0) for net in nets]
    for step in range(50):
        norms = []
        for net, optimizer in zip(nets, optimizers, strict=True):
            give_gradients(net, step)
            norms.append(optimizer.clip())
            optimizer.step()
        assert torch.equal(*norms)
        assert norms[0] > 20
    values = values_of(optimizers[1].parameters)
    assert all(torch.equal(a, b) for a, b in zip(optimizers[0].parameters, values, strict=True))
    assert all(torch.equal(p, value.bfloat16()) for p, value in zip(optimizers[1].parameters, values, strict=True))


def test_gradients_in_bf16_are_clipped_without_another_rounding():
    nets = [network(), halve(network(), "split", torch.bfloat16)]
    optimizers = [optimizer_of(net, "adamw", clip=20.0) for net in nets]
    for step in range(5):
        give_gradients(nets[0], step)
        for wide, narrow in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            narrow.grad = wide.grad.bfloat16()
            wide.grad = narrow.grad.float()
        norms = [optimizer.clip() for optimizer in optimizers]
        assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    for whole, split in zip(optimizers[0].parameters, values_of(optimizers[1].parameters), strict=True):
        torch.testing.assert_close(whole.detach(), split, rtol=1e-6, atol=1e-7)


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    ours, theirs = network(), network()
    hidden = hidden_matrices(owned(ours))
    assert hidden == ["blocks.0.weight", "blocks.1.weight"], "no input, no output of one row, no bias"
    optimizer = optimizer_of(ours, "muon", betas=(0.0, 0.99))
    named = dict(theirs.named_parameters())
    matrices = [named[name].detach().flatten(1) for name in hidden]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rest = [parameter for name, parameter in named.items() if name not in hidden]
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.0, 0.99), weight_decay=0.1, fused=True)
    for step in range(3):
        for net in (ours, theirs):
            give_gradients(net, step)
        for name, matrix in zip(hidden, matrices, strict=True):
            matrix.grad = named[name].grad.flatten(1)
        optimizer.step()
        muon.step()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def kept_for(values: Tensor, name: str, steps: int, *, move: float) -> Tensor:
    """A moment in 8 bits, of which all but each row's first value shrink by `move` in each of some steps."""
    state, rng = eight_bits.start(name, values), torch.Generator().manual_seed(0)
    for step in range(steps + 1):
        blocks = Blocks(name, [state])
        blocks.values[0].copy_(values if step == 0 else blocks.values[0] * (1 - move))
        blocks.values[0][:, 0] = values[:, 0]
        blocks.keep(rng)
    return Blocks(name, [state]).values[0]


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_eight_bits_are_right_on_average(name: str):
    signs = -1 if name == "exp_avg" else 1
    levels = eight_bits.LEVELS[name].tolist()
    assert len(levels) == 256
    assert levels == sorted(set(levels))
    values = torch.full((40, 256), 0.3137)
    values[:, 0], values[:, 1::2] = 1.0, signs * 0.02
    held = kept_for(values, name, 0, move=0)
    assert torch.equal(held[:, 0], values[:, 0])
    for wanted in (0.3137, signs * 0.02):
        found = held[values == wanted]
        spread = found.std() / math.sqrt(len(found))
        assert abs(found.mean() - wanted) < 4 * spread < 0.01 * abs(wanted)
    fallen = kept_for(values, name, 100, move=0.005)  # a hundredth of the distance of two levels, or less
    assert float(fallen[:, 1:].mean() / held[:, 1:].mean()) == pytest.approx(0.995**100, rel=0.03)
    assert not kept_for(torch.zeros(1, 300), name, 3, move=0.1).any()


def test_a_flag_keeps_eight_bits_as_they_were():
    values = torch.rand(4, 256)
    state = eight_bits.start("exp_avg_sq", values)
    for flag in (0.0, 1.0):
        blocks, before = Blocks("exp_avg_sq", [state]), {name: value.clone() for name, value in state.items()}
        blocks.values[0].copy_(values * (1 + flag))
        blocks.keep(torch.Generator().manual_seed(0), blocked=torch.tensor(flag))
        assert [torch.equal(before[name], state[name]) for name in state] == 2 * [flag == 1.0]


def test_eight_bits_rounded_to_the_nearest_would_stand_still(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 0.5))
    values = torch.full((1, 256), 0.3)
    values[0, 0] = 1.0
    held, fallen = (kept_for(values, "exp_avg_sq", steps, move=0.005) for steps in (0, 100))
    assert torch.equal(held, fallen)


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
def test_eight_bits_descend_as_adamw_does(betas: tuple[float, float]):
    rng = torch.Generator().manual_seed(0)
    scales, goal = torch.logspace(-2, 1, 96)[:, None], torch.randn((96, 64), generator=rng)

    def distance(name: str) -> float:
        layer = nn.ModuleList([nn.Linear(64, 96, bias=False)])
        nn.init.zeros_(layer[0].weight)
        optimizer = optimizer_of(layer, name, betas=betas, weight_decay=0.0, schedule="linear")
        noise = torch.Generator().manual_seed(1)
        for _ in range(100):
            layer[0].weight.grad = scales * (layer[0].weight.detach() - goal + torch.randn(96, 64, generator=noise))
            optimizer.step()
        return float((layer[0].weight.detach() - goal).square().mean())

    start, plain, eight = float(goal.square().mean()), distance("adamw"), distance("adamw8bit")
    assert plain < 0.6 * start
    assert eight == pytest.approx(plain, rel=0.1)


OBJECTIVES = (DMD2(ratio=1, guidance=Fixed(1.5)), LatentConsistency(), small_run.KD)
COVERING = {
    ("adamw8bit", "DMD2", "full"),
    ("muon", "LatentConsistency", "lora"),
    ("adamw8bit", "KnowledgeDistillation", "lora"),
}


def combined() -> Iterator[Any]:
    """Every optimizer with every objective and sharing; a few that cover all of each are quick."""
    for name, objective, sharing in product(NAMES, OBJECTIVES, ("full", "lora")):
        of = (name, type(objective).__name__, sharing)
        yield pytest.param(name, objective, sharing, id="-".join(of), marks=[] if of in COVERING else pytest.mark.slow)


@pytest.mark.parametrize(("name", "objective", "sharing"), combined())
def test_every_optimizer_trains_and_resumes_bit_for_bit(pipeline, name, objective, sharing, tmp_path):
    def stage():
        lora = LoRAConfig(rank=24, norms=True) if sharing == "lora" else None
        return small_run.stage(pipeline, objective, lora=lora, optim={"name": name, "betas": (0.0, 0.99)})

    first, second = stage(), stage()
    before = small_run.parameters(first, "generator").clone()
    for _ in range(2):
        first.cycle()
    assert not torch.equal(before, small_run.parameters(first, "generator"))
    second.restore(checkpoint.load(checkpoint.save(tmp_path, 1, first.snapshot(), keep=1)))
    figures = [one.cycle() for one in (first, second)]
    assert figures[0] == figures[1]
    kept = {end for held in bits(first.optimizers["generator"]) for end in [held.partition(".")[2]]}
    assert kept >= {"adamw": {"exp_avg_sq"}, "adamw8bit": {"exp_avg_sq_codes"}, "muon": {"momentum_buffer"}}[name]
    assert all(same(bits(first.optimizers[role]), bits(second.optimizers[role])) for role in first.optimizers)


def test_a_first_moment_of_an_earlier_version_is_left_behind(pipeline):
    """Checkpoints of that version held one even where beta1 is 0, and settings of PyTorch's AdamW."""
    first, second = (small_run.stage(pipeline, small_run.KD, optim={"betas": (0.0, 0.99)}) for _ in range(2))
    first.cycle()
    now = copy.deepcopy(first.snapshot())
    saved, state = dict(now.tensors["optimizer.generator"]), now.state["optimizers"]["generator"]
    for key in [key for key in saved if key.endswith("exp_avg_sq")]:
        saved[key.removesuffix("_sq")] = torch.randn_like(saved[key])
    group = state["groups"][0]
    group["settings"] = {**group["settings"], "amsgrad": False, "foreach": None, "decoupled_weight_decay": True}
    del group["settings"]["momentum"]
    second.restore(Snapshot({**now.tensors, "optimizer.generator": saved}, now.state))
    again = second.snapshot()
    assert again.tensors["optimizer.generator"].keys() == first.snapshot().tensors["optimizer.generator"].keys()
    assert again.state["optimizers"] == first.snapshot().state["optimizers"]
    assert first.cycle() == second.cycle()
