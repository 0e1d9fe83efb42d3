"""The kernel of AdamW in eight bits does what its passes do; without a GPU, Triton interprets it."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config.optimizer import OptimConfig
from fastgen.engine import eight_bits, stepper
from fastgen.engine.optim import RoleOptimizer
from fastgen.models.masters import halve, low_of, values_of
from fastgen.models.owned import owned

kernels = pytest.importorskip("fastgen.engine.kernels")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of zero is as it should be
PLACES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])]


@pytest.fixture(params=PLACES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton compiles where there is a GPU")
    if request.param == "cpu":
        monkeypatch.setattr(kernels, "ROWS", kernels.RUN)  # each operation is interpreted, however much it is of
    return str(request.param)


def optimizer_of(device: str, masters: Any, gradients: torch.dtype, betas: tuple[float, float]) -> RoleOptimizer:
    """Of a layer whose rows are not whole blocks, three updates old."""
    torch.manual_seed(0)
    net: nn.Module = nn.Linear(70, 71).to(device)
    net = net if masters == "fp32" else halve(net, masters, gradients)
    settings = {"name": "adamw8bit", "lr": 1e-2, "betas": betas, "weight_decay": 0.1, "clip": 1.0}
    optimizer = RoleOptimizer(owned(net), OptimConfig.model_validate(settings), total=100, seed=(1,))
    for number in range(3):
        stepped(optimizer, number, in_kernel=False)
    return optimizer


def stepped(optimizer: RoleOptimizer, number: int, *, in_kernel: bool, blocked: Tensor | None = None) -> RoleOptimizer:
    rng = torch.Generator().manual_seed(number)
    for parameter in optimizer.parameters:
        gradient = torch.randn(parameter.shape, generator=rng) * torch.rand(parameter.shape, generator=rng) ** 8
        parameter.grad = gradient.to(parameter.device, parameter.grad_dtype or parameter.dtype)
    optimizer.clip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper, "_kernels", lambda device: kernels if in_kernel else None)
        optimizer.step(blocked=blocked)
    return optimizer


def levels_of(name: str, state: dict[str, Tensor]) -> Tensor:
    codes = state[name + eight_bits.CODES]
    scales = state[name + eight_bits.SCALES].repeat_interleave(eight_bits.BLOCK)[: codes.numel()].view(codes.shape)
    return eight_bits.levels_on(name, codes.device)[codes.int()] * scales


@pytest.mark.parametrize("masters", ["fp32", "split", "bf16"])
@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
def test_an_update_is_that_of_the_passes(device: str, masters: Any, gradients: torch.dtype, betas: tuple[float, float]):
    one, other = (
        stepped(optimizer_of(device, masters, gradients, betas), 3, in_kernel=in_kernel) for in_kernel in (True, False)
    )
    weight, wanted = (values_of(optimizer.parameters)[0] for optimizer in (one, other))
    if masters == "bf16":
        apart = (weight.view(torch.int32) - wanted.view(torch.int32)) >> 16
        assert int(apart.abs().max()) == 1, "rounded up and down by chance"
        assert abs(float(apart.float().mean())) < 4 * float(apart.float().std()) / apart.numel() ** 0.5
    else:
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7)
    state, expected = (optimizer.optimizer.state[optimizer.parameters[0]] for optimizer in (one, other))
    assert state.keys() == expected.keys()
    for name in eight_bits.LEVELS.keys() & {key.removesuffix(eight_bits.CODES) for key in state}:
        torch.testing.assert_close(state[name + eight_bits.SCALES], expected[name + eight_bits.SCALES])
        found, passes = (s[name + eight_bits.CODES].int() for s in (state, expected))
        assert int((found - passes).abs().max()) == 1, "of two neighbouring levels each takes one by chance"
        differences = levels_of(name, state) - levels_of(name, expected)
        assert abs(float(differences.mean())) < 4 * float(differences.std()) / differences.numel() ** 0.5
    assert float(state["step"]) == 4


def test_a_flag_undoes_it_and_seeds_tell_updates_apart(device: str):
    def held(optimizer: RoleOptimizer) -> list[Tensor]:
        states = [optimizer.optimizer.state[p] for p in optimizer.parameters]
        return [*optimizer.parameters, *(state[name] for state in states for name in sorted(state))]

    def after(updates: int = 3, blocked: Tensor | None = None) -> list[Tensor]:
        optimizer = optimizer_of(device, "bf16", torch.bfloat16, (0.9, 0.99))
        optimizer.updates = updates
        return held(stepped(optimizer, 3, in_kernel=True, blocked=blocked))

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(
        after(blocked=torch.ones((), device=device)), held(optimizer_of(device, "bf16", torch.bfloat16, (0.9, 0.99)))
    )
    assert same(after(), after(blocked=torch.zeros((), device=device)))
    assert not torch.equal(after()[0], after(updates=4)[0])


def test_a_mean_of_many_updates_is_exact(device: str):
    """Of one level's distance over fifty, and of a bf16's last place over eighty: to the nearest, nothing moves."""
    weight = nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16, device=device))
    state = {"step": torch.zeros((), device=device)} | eight_bits.start("exp_avg_sq", weight)
    settings = {"lr": 1 / 80 / 128, "weight_decay": 0.0, "eps": 0.0, "betas": (0.0, 0.5)}
    weight.grad = torch.full_like(weight, -1.0)
    for number in range(5):
        kernels.step([weight], [state], kernels.Pass(("exp_avg_sq",), settings, seed=number, numbers=[0]))
    moved = float((weight.detach().float() - 1).mean())
    assert moved == pytest.approx(5 / 80 / 128, rel=0.05)
    assert low_of(weight) is None


def test_tensors_of_one_launch_are_stepped_as_each_alone(device: str, monkeypatch: pytest.MonkeyPatch):
    """Of several forms, of more blocks than a program steps, and of values that do not fill their last block."""
    monkeypatch.setattr(kernels, "ROWS", 8)
    monkeypatch.setattr(kernels, "RUN", 8)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.99)}
    kinds = [(4240, torch.bfloat16), (2500, torch.float32), (4099, torch.bfloat16), (300, torch.bfloat16)]

    def stepped_as(groups: list[list[int]]) -> list[Tensor]:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(n).to(device, d)) for n, d in kinds]
        states: list[dict[str, Tensor]] = []
        for weight in weights:
            weight.grad = torch.randn_like(weight)
            moments = eight_bits.start("exp_avg", weight) | eight_bits.start("exp_avg_sq", weight)
            states.append({"step": torch.zeros((), device=device)} | moments)
        for numbers in groups:
            update = kernels.Pass(("exp_avg", "exp_avg_sq"), settings, seed=5, numbers=numbers)
            kernels.step([weights[i] for i in numbers], [states[i] for i in numbers], update)
        return [*weights, *(value for state in states for value in state.values())]

    for one, other in zip(stepped_as([[0, 1, 2, 3]]), stepped_as([[3], [1], [0], [2]]), strict=True):
        assert torch.equal(one, other)


COMPILE = """
import re, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastgen.engine import kernels

kernel, names = kernels._adamw, kernels._adamw.arg_names
told = dict(columns={columns}, kind=tl.bfloat16, gradient_kind=tl.bfloat16, split={split}, together=16)
told |= dict(rows=kernels.ROWS, run=kernels.RUN, block=kernels.BLOCK)
kinds = dict(table="*i64", runs="*i32", factor="*fp32", blocked="*fp32", seed="i64")
kinds = {{name: "constexpr" if name in told else kinds.get(name, "fp32") for name in names}}
source = ASTSource(kernel, kinds, {{(names.index(name),): value for name, value in told.items()}})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=1)).asm
assert not re.search("tensor<[^>]*f64", made["ttgir"]), "values in float64"
assert re.search("ld.global.v4", made["ptx"]) and re.search("st.global.v4", made["ptx"]), "values read one by one"
assert "st.shared" not in made["ptx"], "values pass from thread to thread"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "split"), [(8, False), (10, True)])
def test_compiled_it_moves_many_values_at_once_and_none_in_float64(columns: int, split: bool):
    """A number that is too small for float32 once made most of the arithmetic float64."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = COMPILE.format(columns=columns, split=split)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
