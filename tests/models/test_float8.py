"""Layers in float8 against the same layers with the weights that float8 leaves, in float64."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from families import probed
from torch import Tensor, nn

from fastgen.models import float8
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.casting import cast
from fastgen.models.denoiser import NetworkDenoiser
from fastgen.models.float8 import COARSE, Float8Linear, in_float8, rounded_rows
from fastgen.models.low_rank import make_adaptable
from fastgen.models.pipelines.attention import avoid_cudnn
from fastgen.models.quantised import quantise
from fastgen.models.targets import find_targets

CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
INPUT_ROUNDING, GRADIENT_ROUNDING = 2**-4, 2**-3  # largest relative error of an entry of three or two stored bits
OUTPUT_ROUNDING = 2**-8  # of bf16


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(*, bias: bool = True, seed: int = 0) -> nn.Linear:
    """Rows of very different sizes, so that one scale for all of them would not do."""
    torch.manual_seed(seed)
    layer = nn.Linear(64, 48, bias=bias).requires_grad_(False)
    layer.weight *= torch.logspace(-3, 2, 48)[:, None]
    return layer.bfloat16()


def dequantised(layer: Float8Linear) -> Tensor:
    return layer.weight.view(torch.float8_e4m3fn).double() * layer.scale.double()


@pytest.fixture(params=["float8 products", "products in bf16"])
def device_kind(request, monkeypatch):
    if request.param == "products in bf16":
        monkeypatch.setattr(float8, "has_products", lambda _device: False)
    elif not float8.has_products(CPU):
        pytest.skip("this PyTorch has no float8 products on the CPU")
    return request.param


@pytest.mark.usefixtures("device_kind")
@pytest.mark.parametrize("bias", [True, False])
def test_an_output_is_that_of_the_rounded_rows(bias):
    layer = layer_of(bias=bias)
    ours, x = in_float8(layer, CPU), drawn(2, 5, 64, seed=1).bfloat16()
    rounded, scale = rounded_rows(x.flatten(0, 1), torch.float8_e4m3fn)
    rows, weight = rounded.double() * scale, dequantised(ours)
    own = layer.bias.double() if bias else torch.zeros(48, dtype=torch.float64)
    exact, size = rows @ weight.t() + own, rows.abs() @ weight.abs().t() + own.abs()
    found = ours(x)
    assert found.dtype == torch.bfloat16
    assert ((found.double().flatten(0, 1) - exact).abs() <= OUTPUT_ROUNDING * size).all()


@pytest.mark.usefixtures("device_kind")
def test_an_output_is_near_that_of_the_plain_layer():
    layer, x = layer_of(), drawn(4, 64, seed=1).bfloat16()
    wanted = layer.double()(x.double())
    size = (layer.weight.abs() @ x.double().abs().t()).t() + layer.bias.abs()
    assert ((in_float8(layer_of(), CPU)(x) - wanted).abs() <= 2 * INPUT_ROUNDING * size).all()


@pytest.mark.usefixtures("device_kind")
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_a_gradient_is_that_of_the_rounded_weights(scale):
    ours, x = in_float8(layer_of(), CPU), drawn(5, 64, seed=1).bfloat16().requires_grad_()
    given = scale * drawn(5, 48, seed=2)
    (found,) = torch.autograd.grad(ours(x), x, given.bfloat16())
    weight = dequantised(ours)
    exact, size = given.double() @ weight, given.double().abs() @ weight.abs()
    assert ((found - exact).abs() <= (GRADIENT_ROUNDING + 4 * OUTPUT_ROUNDING) * size).all()
    assert cosine(found, exact) > 0.995
    assert float(found.double().norm() / exact.norm()) == pytest.approx(1, abs=0.02)


def test_all_kinds_of_devices_compute_the_same(monkeypatch):
    if not float8.has_products(CPU):
        pytest.skip("this PyTorch has no float8 products on the CPU")
    ours, x = in_float8(layer_of(), CPU), drawn(5, 64, seed=1).bfloat16().requires_grad_()
    found = []
    for has in (True, False):
        monkeypatch.setattr(float8, "has_products", lambda _device, has=has: has)
        y = ours(x)
        found.append((y, *torch.autograd.grad(y, x, drawn(5, 48, seed=2).bfloat16())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2 * OUTPUT_ROUNDING, atol=2 * OUTPUT_ROUNDING)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


def plain_twin(net: nn.Module) -> nn.Module:
    """The network with what its float8 layers hold as plain weights, in float32."""
    twin = copy.deepcopy(net)
    for name, layer in net.named_modules():
        if isinstance(layer, Float8Linear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(dequantised(layer).float())
            plain.bias = copy.deepcopy(layer.bias)
            twin.set_submodule(name, plain)
    return twin.float().requires_grad_(False)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_a_networks_gradient_to_its_sample_has_the_direction_of_plain_layers_at_all_times(name):
    pipeline = probed(name)
    net = quantise(copy.deepcopy(pipeline.network), "fp8", CPU)
    assert sum(isinstance(layer, Float8Linear) for layer in net.modules()) >= 4
    cond = pipeline.condition(2, prompts=["a", "a longer one"])
    x = drawn(2, *pipeline.shape, seed=3).requires_grad_()
    for t in (0.05, 0.3, 0.6, 0.95):
        told = (x, torch.full((2,), t, dtype=torch.float64), cond)
        slopes = []
        for speaker, autocast in ((net, torch.bfloat16), (plain_twin(net), None)):
            belief = NetworkDenoiser(speaker, pipeline.reading, pipeline.form, autocast=autocast)(*told)
            away = belief.output(pipeline.reading.row) - drawn(*x.shape, seed=4)
            slopes += torch.autograd.grad(away.square().mean(), x)
        assert slopes[1].any()
        assert cosine(*slopes) > 0.99


def test_an_update_is_added_and_its_gradients_are_not_rounded():
    layer, x = in_float8(layer_of(), CPU), drawn(5, 64, seed=1).bfloat16()
    own = layer(x)
    make_adaptable(layer)
    down, up = (nn.Parameter(drawn(*shape, seed=i).bfloat16()) for i, shape in enumerate([(4, 64), (48, 4)], 5))
    layer._parameters.update(lora_A=down, lora_B=up)
    given = drawn(5, 48, seed=2).bfloat16()
    y = layer(x)
    torch.testing.assert_close(y, own + x @ down.t() @ up.t(), rtol=4 * OUTPUT_ROUNDING, atol=0.2)
    found = torch.autograd.grad(y, [down, up], given)
    wanted = (up.t() @ given.t() @ x, given.t() @ (x @ down.t()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * OUTPUT_ROUNDING, atol=0.5)


def test_layers_that_float8_does_not_suit_stay_what_they_are():
    odd, wide = nn.Linear(24, 64), layer_of()
    assert in_float8(odd, CPU) is odd
    wide.weight[:] = torch.logspace(-12, 3, 64)  # within each row, more than the format reaches
    assert in_float8(wide, CPU) is wide
    rounded, scale = rounded_rows(layer_of().weight.float(), torch.float8_e4m3fn)
    left = (rounded.float() * scale / layer_of().weight.float() - 1).abs().mean()
    assert 0.01 < left < COARSE / 1.5


def test_rows_of_zeros_and_what_is_not_finite_are_kept():
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0], [torch.inf, 1.0], [torch.nan, 1.0]])
    rounded, scale = rounded_rows(x, torch.float8_e4m3fn)
    back = rounded.float() * scale
    assert torch.equal(back[:2], x[:2])
    assert not back[2:].isfinite().all(dim=1).any()


def test_casts_and_aliases_leave_weights_what_they_are():
    net = nn.Sequential(layer_of())
    net[0] = in_float8(net[0], CPU)
    weight, scale = net[0].weight.clone(), net[0].scale.clone()
    other = alias(cast(net, torch.bfloat16))
    assert other[0].weight is net[0].weight
    assert other[0].scale is net[0].scale
    assert torch.equal(other[0].weight, weight)
    assert torch.equal(other[0].scale, scale)
    assert other[0].weight.dtype == torch.uint8
    assert scale.dtype == torch.float32


def test_there_is_one_derivative_and_no_more():
    layer, x = in_float8(layer_of(), CPU), drawn(2, 64, seed=1).bfloat16().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()
    with pytest.raises(RuntimeError):
        torch.func.jvp(layer, (x,), (torch.ones_like(x),))


def wide_network() -> nn.Module:
    """A Flux of 1,024 channels, in bf16 on the CPU."""
    torch.manual_seed(0)
    settings = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 8}
    widths = {"attention_head_dim": 128, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    return FluxTransformer2DModel(**settings, **widths).eval().bfloat16().requires_grad_(False)


def adapter_gradient(net: nn.Module) -> Tensor:
    """The gradient of a squared output by the factors of an adapter, flat and in float32."""
    torch.manual_seed(1)
    shared = SharedNetwork(net, ["generator"], Adaptation(rank=4))
    with torch.no_grad():
        for p in shared.adapters["generator"].parameters():
            p += 0.02 * torch.randn(p.shape).to(p)
    avoid_cudnn()  # as runs do
    told = {
        "hidden_states": drawn(2, 256, 16, seed=1),
        "encoder_hidden_states": drawn(2, 8, 64, seed=2),
        "pooled_projections": drawn(2, 64, seed=3),
        "timestep": torch.tensor([0.2, 0.8]),
        "img_ids": torch.zeros(256, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    bank = shared.banks["generator"]
    bank.requires_grad_(True)
    with shared.acting("generator"):
        output = net(**{name: value.to("cuda", torch.bfloat16) for name, value in told.items()}).sample
    output.float().square().mean().backward()
    return torch.cat([p.grad.float().flatten() for p in bank.working.values()])


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize(("kind", "least", "saved"), [("fp8", 0.98, 1.0), ("int8", 0.98, 1.0), ("nf4", 0.9, 1.5)])
def test_a_quantised_base_on_a_gpu_leads_an_adapter_where_bf16_does(kind, least, saved):
    """The direction of an adapter's gradient, and the bytes that each weight of the layers saves."""
    if kind != "fp8":
        pytest.importorskip("bitsandbytes")
    before = torch.cuda.memory_allocated()
    plain = wide_network().cuda()
    bytes_of = {"bf16": torch.cuda.memory_allocated() - before}
    wanted = adapter_gradient(plain)
    layers = sum(plain.get_submodule(name).weight.numel() for name in find_targets(plain))
    del plain
    before = torch.cuda.memory_allocated()
    net = quantise(wide_network(), kind, "cuda")
    bytes_of[kind] = torch.cuda.memory_allocated() - before
    direction = cosine(adapter_gradient(net), wanted)
    print(f"{kind}: direction {direction:.4f}, MiB { ({base: size / 2**20 for base, size in bytes_of.items()}) }")
    assert direction > least
    assert bytes_of["bf16"] - bytes_of[kind] == pytest.approx(saved * layers, rel=0.1)


@pytest.mark.slow
def test_it_is_compiled_whole():
    layer, x = in_float8(layer_of(), CPU), drawn(4, 64, seed=1).bfloat16().requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found, wanted = compiled(x), layer(x)
    assert torch.equal(found, wanted)
    slopes = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (found, wanted)]
    assert torch.equal(*slopes)
