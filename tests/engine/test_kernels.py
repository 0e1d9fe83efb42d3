"""The kernel of AdamW does what its passes do; without a GPU, Triton interprets it."""

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
from fastgen.engine.rules import Pass
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
        for name in ("ROWS", "RUN"):
            monkeypatch.setattr(kernels, name, 16)  # each operation is interpreted, however much it is of
    return str(request.param)


def optimizer_of(
    device: str, masters: Any, gradients: torch.dtype, betas: tuple[float, float], *, name: str = "adamw8bit"
) -> RoleOptimizer:
    """Of a layer whose rows are not whole blocks, and of one with few values."""
    torch.manual_seed(0)
    net: nn.Module = nn.ModuleList([nn.Linear(70, 71), nn.Linear(3, 5)]).to(device)
    net = net if masters == "fp32" else halve(net, masters, gradients)
    settings = {"name": name, "lr": 1e-2, "betas": betas, "weight_decay": 0.1, "clip": 1.0}
    return RoleOptimizer(owned(net), OptimConfig.model_validate(settings), total=100, seed=(1,))


def stepped(optimizer: RoleOptimizer, number: int, *, in_kernel: bool, blocked: Tensor | None = None) -> RoleOptimizer:
    rng = torch.Generator().manual_seed(number)
    for parameter in optimizer.parameters:
        gradient = torch.randn(parameter.shape, generator=rng) * torch.rand(parameter.shape, generator=rng) ** 8
        parameter.grad = gradient.to(parameter.device, parameter.grad_dtype or parameter.dtype)
    optimizer.clip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper, "kernel_on", lambda device: kernels.step if in_kernel else None)
        optimizer.step(blocked=blocked)
    return optimizer


def levels_of(key: str, state: dict[str, Tensor]) -> Tensor:
    codes, name = state[key], key.removesuffix(eight_bits.CODES)
    scales = state[name + eight_bits.SCALES].repeat_interleave(eight_bits.BLOCK)[: codes.numel()].view(codes.shape)
    return eight_bits.levels_on(name, codes.device)[codes.int()] * scales


BETAS = pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
GRADIENTS = pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16])


@pytest.mark.parametrize(
    ("name", "masters"), [("adamw8bit", "fp32"), ("adamw8bit", "split"), ("adamw8bit", "bf16"), ("adamw", "bf16")]
)
@GRADIENTS
@BETAS
def test_an_update_is_that_of_the_passes(
    device: str, name: str, masters: Any, gradients: torch.dtype, betas: tuple[float, float]
):
    """The fourth one; what is rounded by chance is next to that of the passes, and on average the same."""
    one, other = (optimizer_of(device, masters, gradients, betas, name=name) for _ in range(2))
    for number in range(4):
        stepped(one, number, in_kernel=number == 3)
        stepped(other, number, in_kernel=False)
    weight, wanted = (values_of(optimizer.parameters)[0] for optimizer in (one, other))
    if masters == "bf16":
        apart = (weight.view(torch.int32) - wanted.view(torch.int32)) >> 16
        assert int(apart.abs().max()) == 1, "rounded up and down by chance"
        assert abs(float(apart.float().mean())) < 4 * float(apart.float().std()) / apart.numel() ** 0.5
    else:
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7)
    state, expected = (optimizer.optimizer.state[optimizer.parameters[0]] for optimizer in (one, other))
    assert state.keys() == expected.keys()
    for key in state.keys() - {"step"}:
        if key.endswith(eight_bits.CODES):
            found, passes = (s[key].int() for s in (state, expected))
            assert int((found - passes).abs().max()) == 1, "of two neighbouring levels each takes one by chance"
            differences = levels_of(key, state) - levels_of(key, expected)
            assert abs(float(differences.mean())) < 4 * float(differences.std()) / differences.numel() ** 0.5
        else:
            torch.testing.assert_close(state[key], expected[key], rtol=5e-6, atol=1e-8)
    assert float(state["step"]) == 4


@GRADIENTS
@BETAS
def test_many_updates_of_split_weights_are_those_of_the_passes(
    device: str, gradients: torch.dtype, betas: tuple[float, float]
):
    """With moments in float32 nothing is rounded by chance, so that both stay together but for the last places."""
    one, other = (optimizer_of(device, "split", gradients, betas, name="adamw") for _ in range(2))
    for number in range(50 if device == "cuda" else 8):
        if number == 5:
            stepped(one, 99, in_kernel=True, blocked=torch.ones((), device=device))
        stepped(one, number, in_kernel=True, blocked=torch.zeros((), device=device))
        stepped(other, number, in_kernel=False)
    for weight, wanted in zip(*(values_of(optimizer.parameters) for optimizer in (one, other)), strict=True):
        assert float((weight - wanted).abs().max()) < 2e-6, "an update moves them by up to 0.1"
    for parameter, twin in zip(one.parameters, other.parameters, strict=True):
        state, expected = one.optimizer.state[parameter], other.optimizer.state[twin]
        assert state.keys() == expected.keys() == {"step", "exp_avg_sq"} | ({"exp_avg"} if betas[0] else set())
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=5e-6, atol=2e-6 * float(value.abs().max()))


def test_a_flag_undoes_it_and_seeds_tell_updates_apart(device: str):
    def after(updates: int = 3, **told: Any) -> list[Tensor]:
        optimizer = optimizer_of(device, "bf16", torch.bfloat16, (0.9, 0.99))
        for number in range(3):
            stepped(optimizer, number, in_kernel=False)
        optimizer.updates = updates
        if told:
            stepped(optimizer, 3, in_kernel=True, **told)
        states = [optimizer.optimizer.state[p] for p in optimizer.parameters]
        return [*optimizer.parameters, *(state[name] for state in states for name in sorted(state))]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(after(blocked=torch.ones((), device=device)), after())
    assert same(after(blocked=None), after(blocked=torch.zeros((), device=device)))
    assert not torch.equal(after(blocked=None)[0], after(4, blocked=None)[0])


def test_a_mean_of_many_updates_is_exact(device: str):
    """Of one level's distance over fifty, and of a bf16's last place over eighty: to the nearest, nothing moves."""
    weight = nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16, device=device))
    state = {"step": torch.zeros((), device=device)} | eight_bits.start("exp_avg_sq", weight)
    settings = {"lr": 1 / 80 / 128, "weight_decay": 0.0, "eps": 0.0, "betas": (0.0, 0.5)}
    weight.grad = torch.full_like(weight, -1.0)
    for number in range(5):
        kernels.step([weight], [state], Pass(settings, seed=number, numbers=[0]))
    moved = float((weight.detach().float() - 1).mean())
    assert moved == pytest.approx(5 / 80 / 128, rel=0.05)
    assert low_of(weight) is None


def values(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A moment in float32."""
    return {name: torch.zeros_like(weight, dtype=torch.float32)}


@pytest.mark.parametrize("start", [eight_bits.start, values])
def test_tensors_of_one_launch_are_stepped_as_each_alone(device: str, start: Any, monkeypatch: pytest.MonkeyPatch):
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
            moments = start("exp_avg", weight) | start("exp_avg_sq", weight)
            states.append({"step": torch.zeros((), device=device)} | moments)
        for numbers in groups:
            update = Pass(settings, seed=5, numbers=numbers)
            kernels.step([weights[i] for i in numbers], [states[i] for i in numbers], update)
        return [*weights, *(value for state in states for value in state.values())]

    for one, other in zip(stepped_as([[0, 1, 2, 3]]), stepped_as([[3], [1], [0], [2]]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shifted", ["weight", "low", "gradient", "exp_avg", "exp_avg_sq"])
def test_it_does_not_matter_where_tensors_lie(device: str, shifted: str, monkeypatch: pytest.MonkeyPatch):
    """One that does not begin at a multiple of sixteen bytes is not read sixteen bytes at once."""
    together, launch = list[bool](), kernels._launch
    monkeypatch.setattr(kernels, "_launch", lambda form, *told: (together.append(form.together), launch(form, *told)))
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.99)}

    def stepped_from(shift: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(0)
        gradient = torch.randn(1024, generator=rng)
        held = {"weight": torch.randn(1024, generator=rng).bfloat16(), "gradient": gradient.bfloat16()}
        held |= {"low": torch.arange(1024).to(torch.int16), "exp_avg": gradient / 2, "exp_avg_sq": gradient.square()}
        held = {name: value.to(device) for name, value in held.items()}
        held[shifted] = torch.cat([held[shifted][:shift], held[shifted]])[shift:]
        weight = nn.Parameter(held["weight"])
        weight.low, weight.grad = held["low"], held["gradient"]  # type: ignore[attr-defined]
        state = {"step": torch.ones((), device=device), "exp_avg": held["exp_avg"], "exp_avg_sq": held["exp_avg_sq"]}
        kernels.step([weight], [state], Pass(settings, seed=0, numbers=[0]))
        return held

    one, other = stepped_from(0), stepped_from(1)
    assert together == [True, False]
    assert all(torch.equal(one[name], other[name]) for name in one)


COMPILE = """
import re, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastgen.engine import kernels

kernel, names = kernels._adamw, kernels._adamw.arg_names
told = dict(kind=tl.bfloat16, gradient_kind=tl.bfloat16, moment_kind=tl.{moment})
told |= dict(split={split}, momentum={momentum}, together=16)
told |= dict(rows=kernels.ROWS, run=kernels.RUN, block=kernels.BLOCK)
kinds = dict(table="*i64", runs="*i32", factor="*fp32", blocked="*fp32", seed="i64")
kinds = {{name: "constexpr" if name in told else kinds.get(name, "fp32") for name in names}}
source = ASTSource(kernel, kinds, {{(names.index(name),): value for name, value in told.items()}})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=1)).asm
assert not re.search("tensor<[^>]*f64", made["ttgir"]), "values in float64"
assert re.search("ld.global.v4", made["ptx"]) and re.search("st.global.v4", made["ptx"]), "values read one by one"
assert "st.shared" not in made["ptx"], "values pass from thread to thread"
assert ("mul.hi.u32" in made["ptx"]) == {drawn}, "random bits are drawn where something is rounded by chance, alone"
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["uint8", "float32"])
@pytest.mark.parametrize(("momentum", "split"), [(False, False), (True, True)])
def test_compiled_it_moves_many_values_at_once_and_none_in_float64(moment: str, momentum: bool, split: bool):
    """A number that is too small for float32 once made most of the arithmetic float64."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = COMPILE.format(moment=moment, momentum=momentum, split=split, drawn=moment == "uint8" or not split)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
