"""Roles on one network against roles on networks of their own: the same losses and gradients, bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from compiling import compiling
from rounding import assert_alike, gap
from sharing import FAMILIES, ROWS, TRAINED, Family, apart, conditioning, noise, shared
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgen.models.calls import through
from fastgen.models.owned import owned
from fastgen.models.regions import compile_regions
from fastgen.models.roles import Roles
from fastgen.models.targets import find_targets
from fastgen.objectives import DMD, DMD2, Batch, Pair
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.ops import renoised
from fastgen.objectives.parts.rollout import land


@dataclass(frozen=True)
class PathGradient:
    """SiD's form: <real - fake, real - x0> / 2 with the gradient through both scores (arXiv:2404.04057, eq. 23)."""

    def generator(self, roles: Roles, batch: Batch) -> dict[str, Tensor]:
        x0 = land("one_step", roles, batch).x
        noised = renoised(roles, batch, x0, law=DMD2().times)
        real, fake = (
            through(score, noised.x_t, noised.t, batch.cond).x0 for score in (roles.real_score, roles.fake_score)
        )
        return {"sid": ((real - fake) * (real - x0 + 0.5 * (fake - real))).mean()}


@dataclass(frozen=True)
class Case:
    objective: Any
    turn: tuple[str, ...]


CASES = {
    "dmd, generator": Case(DMD(), ("generator",)),
    "dmd, fake score": Case(DMD(), ("fake_score",)),
    "gan, generator": Case(DMD2(gan=GAN(1.0)), ("generator",)),
    "gan, fake score": Case(DMD2(gan=GAN(1.0, learned=1.0)), ("fake_score", "discriminator")),
    "path gradient": Case(PathGradient(), ("generator",)),
}


def batch(family: Family) -> Batch:
    streams = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    ends = [noise(ROWS, *family.shape, seed=seed) for seed in (5, 6, 7)]
    return Batch(conditioning(family), family.shape, *streams, real=ends[0], pairs=Pair(*ends[1:]))


def own_gradients(roles: Roles, role: str) -> dict[str, Tensor]:
    """The gradients of what a role trains, by their peft names."""
    parts = owned(roles[role])
    named = parts.named([torch.zeros_like(p) if p.grad is None else p.grad for p in parts.tensors])
    if role == "discriminator":
        return named
    keys = {name.removeprefix("net.").removeprefix("adapter.").replace(".default", ""): p for name, p in named.items()}
    return {name: p for name, p in keys.items() if "lora_" in name}


def gradients(roles: Roles, case: Case, family: Family, ambient: Callable[[], Any]) -> dict[str, Tensor]:
    """Of the acting roles' own parameters, with `ambient` around the backward pass."""
    for p in (p for role in roles.members for p in roles.parameters(role)):
        p.grad = None
    with roles.training(case.turn):
        terms = getattr(case.objective, case.turn[0])(roles, batch(family))
        with ambient():
            torch.stack(list(terms.values())).sum().backward()
        roles.collect_gradients(case.turn)
    return {f"{role}.{name}": gradient for role in case.turn for name, gradient in own_gradients(roles, role).items()}


def stored_or_computed_again() -> Iterator[object]:
    """Every other network with gradient checkpointing; the slow tests take each both ways.

    Theirs alone are three whose blocks are those of others, in larger stacks.
    """
    for place, name in enumerate(FAMILIES):
        for checkpointing, label in ((False, "stored"), (True, "checkpointed")):
            slow = (place + checkpointing) % 2 or name in ("SDXL", "Flux", "UNet2D")
            yield pytest.param(name, checkpointing, id=f"{name}-{label}", marks=[pytest.mark.slow] * bool(slow))


@pytest.mark.parametrize(("name", "checkpointing"), stored_or_computed_again())
def test_gradients_are_those_of_three_networks(name, checkpointing):
    family = FAMILIES[name]
    base = family.network()
    together, network = shared(family, base, checkpointing)
    separate = apart(family, base, together, checkpointing)
    for what, case in CASES.items():
        expected = gradients(separate, case, family, nullcontext)
        floor = 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values())  # of zeros but for rounding
        moved = sum(bool(gradient.any()) for gradient in expected.values())
        assert moved > 0.7 * len(expected), f"{what}: the comparison would be of zeros"
        for role in (None, *TRAINED):
            found = gradients(together, case, family, lambda role=role: network.acting(role))
            assert found.keys() == expected.keys()
            wrong = [key for key in expected if gap(found[key], expected[key], floor) > 1e-4]
            assert not wrong, f"{what}, {role} acting at backward: {wrong}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_through_compiled_blocks_are_those_of_three_networks(name):
    family, case = FAMILIES[name], CASES["gan, fake score"]
    base = family.network()
    together, network = shared(family, base, checkpointing=True)
    expected = gradients(apart(family, base, together, False), case, family, nullcontext)
    floor = 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values())
    compile_regions(network.net, together.discriminator.layers)
    torch._dynamo.utils.counters.clear()
    with compiling() as compiler:
        for role in (None, *TRAINED):
            found = gradients(together, case, family, lambda role=role: network.acting(role))
            wrong = [key for key in expected if gap(found[key], expected[key], floor) > 1e-4]
            assert not wrong, f"{role} acting at backward: {wrong}"
    assert compiler.count > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def derivatives(roles: Roles, family: Family) -> dict[str, Tensor]:
    """The generator's output, its derivative along the time and the sample, and the gradient of a squared slope."""
    x, t = noise(ROWS, *family.shape, seed=8), torch.full((ROWS,), 0.5, dtype=torch.float64)
    along = noise(ROWS, *family.shape, seed=9), torch.ones_like(t)

    def believed(x_t: Tensor, t: Tensor) -> Tensor:
        return roles.generator(x_t, t, conditioning(family)).x0

    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad():
            found, rate = torch.func.jvp(believed, (x, t), along)
        with roles.training(("generator",)):
            given = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(believed(given, t).square().mean(), given, create_graph=True)
            slope.square().sum().backward()
            roles.collect_gradients(("generator",))
    seconds = own_gradients(roles, "generator")
    for p in roles.parameters("generator"):
        p.grad = None
    return {"output": found, "rate": rate, **seconds}


@pytest.mark.parametrize(
    "name",
    [name if name in ("SDXL", "Flux", "DiT") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_forward_and_second_derivatives_are_those_of_three_networks(name):
    family = FAMILIES[name]
    base = family.network()
    together, _ = shared(family, base, checkpointing=False)
    found, expected = derivatives(together, family), derivatives(apart(family, base, together, False), family)
    seconds = [value for key, value in expected.items() if "lora_" in key]
    floor = 1e-2 * max(float(value.abs().max()) for value in seconds)
    assert expected["rate"].abs().max() > 1e-2
    assert sum(bool(value.any()) for value in seconds) > 0.7 * len(seconds)
    wrong = [key for key in expected if gap(found[key], expected[key], floor if "lora_" in key else 0) > 1e-4]
    assert found.keys() == expected.keys()
    assert not wrong


class Coarse(nn.Linear):
    """A frozen layer with weights in int8, which computes them anew at each call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.scale = float(layer.weight.detach().abs().max()) / 127
        weight = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize(
    "checkpointing", [pytest.param(False, marks=pytest.mark.slow), True], ids=["stored", "checkpointed"]
)
def test_gradients_through_quantised_layers_are_those_of_three_networks(checkpointing):
    family = FAMILIES["SDXL"]
    base = family.network().requires_grad_(False)
    for name in find_targets(base):
        base.set_submodule(name, Coarse(base.get_submodule(name)))
    together, _ = shared(family, base, checkpointing, compute=torch.float32)
    separate = apart(family, base, together, checkpointing)
    for what in ("gan, generator", "gan, fake score"):
        found, expected = (gradients(roles, CASES[what], family, nullcontext) for roles in (together, separate))
        floor = 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values())
        assert found.keys() == expected.keys()
        assert not [key for key in expected if gap(found[key], expected[key], floor) > 1e-4]


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_computes_blocks_again(name):
    """Otherwise the comparison under checkpointing would prove nothing."""
    family = FAMILIES[name]
    together, _ = shared(family, family.network(), checkpointing=True)
    calls: list[bool] = []
    layer = next(m for m in together.generator.net.modules() if "lora_A" in m._parameters)
    layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    gradients(together, CASES["path gradient"], family, nullcontext)
    assert len(calls) == 6


@pytest.mark.parametrize("backbone", ["fake_score", "real_score"])
def test_features_are_those_of_their_role_and_carry_a_gradient(backbone):
    family = FAMILIES["SD"]
    base = family.network()
    together, network = shared(family, base, checkpointing=True)
    separate = apart(family, base, together, checkpointing=False)
    t, layers = torch.full((ROWS,), 0.5, dtype=torch.float64), ["mid_block"]
    slopes, features = [], []
    for roles in (together, separate):
        x = noise(ROWS, *family.shape).requires_grad_()
        features += roles[backbone].tap(x, t, conditioning(family), layers)
        with network.acting("generator"):
            slopes += torch.autograd.grad(features[-1].square().sum(), x)
    assert_alike(*features)
    assert_alike(*slopes, within=1e-4)
    assert slopes[0].any()
    other = "real_score" if backbone == "fake_score" else "fake_score"
    assert not torch.equal(features[0], together[other].tap(x, t, conditioning(family), layers)[0])
