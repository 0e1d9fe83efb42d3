"""Roles on one network against roles on networks of their own: the same losses and gradients, bit for bit."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import inject_adapter_in_model, set_peft_model_state_dict
from rounding import assert_alike, gap
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgen.models.adapters import Adaptation, AdaptedDenoiser, SharedNetwork, alias
from fastgen.models.calls import through
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.models.discriminator import Discriminator, default_layers
from fastgen.models.merging import lora_layers
from fastgen.models.owned import owned
from fastgen.models.roles import Roles
from fastgen.models.targets import find_targets
from fastgen.models.walk import Plan
from fastgen.objectives import DMD, DMD2, Batch, Pair
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.ops import renoised
from fastgen.objectives.parts.rollout import land
from fastgen.process import even_grid, from_scheduler

ROWS, WIDTH, TOKENS = 2, 16, 3
TRAINED = ("generator", "fake_score")
ROLES = (*TRAINED, "real_score")
TRANSFORMER, UNET = CallForm(sample="hidden_states", channels=4), CallForm(channels=4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Family:
    """A network and how it is called."""

    kind: str
    settings: dict[str, Any]
    told: dict[str, Any]
    shared: dict[str, Any]
    shape: tuple[int, ...] = (4, 8, 8)
    form: CallForm = TRANSFORMER

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        net = getattr(diffusers, self.kind)(**self.settings).eval()
        for p in net.parameters():  # some families start with a last layer of zeros
            p.data += 0.02 * torch.randn_like(p)
        return net


def unet(**settings: Any) -> dict[str, Any]:
    return {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, **settings}


TEXT = {"encoder_hidden_states": noise(ROWS, TOKENS, WIDTH)}
CONDITIONAL = unet(
    cross_attention_dim=WIDTH,
    attention_head_dim=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
SQUARE = {"sample_size": 8, "in_channels": 4, "patch_size": 2}
FAMILIES = {
    "SD": Family("UNet2DConditionModel", CONDITIONAL, TEXT, {}, form=UNET),
    "SDXL": Family(
        "UNet2DConditionModel",
        {
            **CONDITIONAL,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        },
        {**TEXT, "added_cond_kwargs": {"text_embeds": noise(ROWS, WIDTH), "time_ids": 8 * torch.ones(ROWS, 6)}},
        {},
        form=UNET,
    ),
    "Flux": Family(
        "FluxTransformer2DModel",
        {
            **{"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2},
            **{"attention_head_dim": 16, "axes_dims_rope": (4, 4, 8), "joint_attention_dim": WIDTH},
            **{"pooled_projection_dim": WIDTH, "guidance_embeds": True},
        },
        {**TEXT, "pooled_projections": noise(ROWS, WIDTH), "guidance": torch.full((ROWS,), 3.5)},
        {"img_ids": noise(4, 3).abs().round(), "txt_ids": torch.zeros(TOKENS, 3)},
        shape=(4, 16),
        form=CallForm(sample="hidden_states", slope=1e-3),
    ),
    "SD3": Family(
        "SD3Transformer2DModel",
        {
            **{**SQUARE, **HEADS, "num_layers": 2, "out_channels": 4, "pos_embed_max_size": 8},
            **{"joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": WIDTH},
        },
        {**TEXT, "pooled_projections": noise(ROWS, WIDTH)},
        {},
    ),
    "Sana": Family(
        "SanaTransformer2DModel",
        {
            **{**SQUARE, **HEADS, "patch_size": 1, "out_channels": 4, "num_layers": 2, "caption_channels": WIDTH},
            **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16},
        },
        TEXT,
        {},
    ),
    "UNet2D": Family(
        "UNet2DModel",
        unet(
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        {},
        {},
        form=UNET,
    ),
    "DiT": Family(
        "DiTTransformer2DModel",
        {**SQUARE, **HEADS, "out_channels": 8, "num_layers": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
        {"class_labels": torch.tensor([1, 2])},
        {},
    ),
    "PixArt": Family(
        "PixArtTransformer2DModel",
        {
            **{**SQUARE, **HEADS, "out_channels": 8, "num_layers": 2, "caption_channels": WIDTH},
            **{"cross_attention_dim": 16, "norm_num_groups": 4, "use_additional_conditions": False},
        },
        {**TEXT, "encoder_attention_mask": torch.ones(ROWS, TOKENS)},
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
}
FLOW = from_scheduler(FlowMatchEulerDiscreteScheduler())


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


def shared(
    family: Family, base: nn.Module, checkpointing: bool, compute: torch.dtype | None = None
) -> tuple[Roles, SharedNetwork]:
    """All roles on one network; the adapters have left their zero."""
    torch.manual_seed(1)
    network = SharedNetwork(alias(base), TRAINED, Adaptation(rank=2, alpha=3.0), compute=compute)
    with torch.no_grad():
        for role in TRAINED:
            for p in network.adapters[role].parameters():
                p += 0.2 * torch.randn_like(p)
    if checkpointing:
        network.checkpoint_blocks()
    denoiser = NetworkDenoiser(network.net, FLOW, family.form)
    members: dict[str, nn.Module] = {role: AdaptedDenoiser(denoiser, network, role) for role in ROLES}
    return with_discriminator(members, family, base), network


class Alone(NetworkDenoiser):
    """A network whose adapter is trained."""

    def requires_grad_(self, requires_grad: bool = True) -> "Alone":
        for name, p in self.named_parameters():
            if "lora_" in name:
                p.requires_grad_(requires_grad)
        return self


def apart(family: Family, base: nn.Module, together: Roles, checkpointing: bool) -> Roles:
    """A network for each role with one adapter at most, switched by nothing and called as peft does."""
    members: dict[str, nn.Module] = {}
    for role in ROLES:
        net = copy.deepcopy(base).requires_grad_(False)
        if role in TRAINED:
            state, config = lora_layers(together[role].adapter.state_dict(), alpha=3.0)
            inject_adapter_in_model(config, net)
            set_peft_model_state_dict(net, state)
        if checkpointing:
            net.enable_gradient_checkpointing()
        members[role] = Alone(net, FLOW, family.form)
    return with_discriminator(members, family, base)


def with_discriminator(members: dict[str, nn.Module], family: Family, base: nn.Module) -> Roles:
    torch.manual_seed(2)
    example = (noise(ROWS, *family.shape), torch.full((ROWS,), 0.5, dtype=torch.float64), conditioning(family))
    layers = default_layers(base, members["fake_score"], example)
    members["discriminator"] = Discriminator(members["fake_score"], layers, example)
    for p in members["discriminator"].parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Roles(members, Plan([even_grid(2)]))


def conditioning(family: Family) -> Conditioning:
    return Conditioning(ROWS, family.told, family.shared)


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
    """Every other network with gradient checkpointing; the slow tests take each both ways."""
    for place, name in enumerate(FAMILIES):
        for checkpointing, label in ((False, "stored"), (True, "checkpointed")):
            slow = (place + checkpointing) % 2
            yield pytest.param(name, checkpointing, id=f"{name}-{label}", marks=[pytest.mark.slow] * slow)


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


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
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
