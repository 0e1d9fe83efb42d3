"""The attention kernel of a network: applied where it works, refused where it would not, kept in copies."""

import copy
import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel, attention_backend
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgen.errors import UserError
from fastgen.models.pipelines.attention import avoid_cudnn, check_attention, set_attention

FIRST = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
OLD, NEW = "old style: straight to PyTorch", "new style: through the dispatcher"


def network(style: str) -> nn.Module:
    return tiny.stable_diffusion().unet if style == OLD else tiny.flux().transformer


def call(net: nn.Module) -> Tensor:
    """One forward pass on fixed inputs in the network's own device and dtype."""
    generator = torch.Generator().manual_seed(0)
    weight = next(net.parameters())

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(weight)

    time = torch.full((2,), 0.5).to(weight)
    if "Flux" in type(net).__name__:
        net_input = {"pooled_projections": noise(2, 32), "guidance": time}
        ids = {"txt_ids": noise(6, 3) * 0, "img_ids": noise(16, 3) * 0}
        return net(noise(2, 16, 16), noise(2, 6, 32), timestep=time, **net_input, **ids, return_dict=False)[0]
    return net(noise(2, 4, 8, 8), time * 999, noise(2, 6, 32), return_dict=False)[0]


@pytest.fixture(autouse=True)
def _every_kernel_allowed() -> Iterator[None]:
    """PyTorch puts a kernel that is not allowed, as cuDNN's after a run, at the end of the order that it restores."""
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(allowed)


@contextmanager
def watched() -> Iterator[list[tuple[int, ...]]]:
    """PyTorch's order of attention kernels at each attention call."""
    seen = []
    compute = nn.functional.scaled_dot_product_attention

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(tuple(torch._C._get_sdp_priority_order()))
        return compute(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", noting)
        yield seen


def orders(net: nn.Module) -> list[tuple[int, ...]]:
    with watched() as seen, torch.no_grad():
        call(net)
    assert seen
    return seen


@pytest.mark.parametrize("style", [OLD, NEW])
@pytest.mark.parametrize("name", FIRST)
def test_every_attention_call_prefers_the_kernel(style: str, name: str) -> None:
    net = network(style)
    usual = orders(net)
    before = call(net)
    set_attention(net, name)
    assert all(order[0] == FIRST[name].value for order in orders(net))
    assert len(orders(net)) == len(usual)
    assert torch.equal(call(net), before)
    assert tuple(torch._C._get_sdp_priority_order()) == usual[0]
    set_attention(net, "native")
    assert orders(net) == usual


@pytest.mark.parametrize("style", [OLD, NEW])
def test_a_copy_keeps_the_kernel(style: str) -> None:
    net = network(style)
    plain = copy.deepcopy(net)
    set_attention(net, "cudnn")
    twin = copy.deepcopy(net)
    set_attention(net, "native")
    assert all(order[0] == FIRST["cudnn"].value for order in orders(twin))
    assert orders(net) == orders(plain)


def test_the_recompute_of_a_checkpointed_block_prefers_the_kernel_too() -> None:
    net = network(OLD).train()
    set_attention(net, "cudnn")
    net.enable_gradient_checkpointing()
    with watched() as seen:
        output = call(net)
        forward = len(seen)
        output.sum().backward()
    assert len(seen) == 2 * forward
    assert all(order[0] == FIRST["cudnn"].value for order in seen)


def test_gradients_reach_the_kernel_in_the_layout_of_its_outputs() -> None:
    """cuDNN's backward is wrong otherwise; Flux's single blocks hand it something else."""
    plain, net = network(NEW), network(NEW)
    set_attention(net, "cudnn")
    assert not all(layouts_kept(plain))
    assert all(layouts_kept(net))
    for ours, native in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, native.grad)


def layouts_kept(net: nn.Module) -> list[bool]:
    """Whether the gradient has the strides of the output, for each attention call."""
    kept = []
    compute = nn.functional.scaled_dot_product_attention

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        output = compute(*args, **kwargs)
        strides = output.stride()
        output.grad_fn.register_prehook(lambda gradients: kept.append(gradients[0].stride() == strides))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", noting)
        call(net).square().mean().backward()
    assert kept
    return kept


def test_processors_keep_their_arguments_and_names() -> None:
    net = network(OLD)
    plain = {name: type(p).__name__ for name, p in net.attn_processors.items()}
    signatures = [inspect.signature(p.__call__) for p in net.attn_processors.values()]
    set_attention(net, "flash")
    assert {name: type(p).__name__ for name, p in net.attn_processors.items()} == plain
    assert [inspect.signature(p.__call__) for p in net.attn_processors.values()] == signatures


def test_the_default_of_the_process_is_left_alone() -> None:
    with attention_backend("_native_math"):
        set_attention(network(NEW), "native")
        assert _AttentionBackendRegistry.get_active_backend()[0].value == "_native_math"


def test_auto_touches_nothing() -> None:
    net = nn.Linear(2, 2)
    set_attention(net, "auto")
    check_attention("auto", device="cpu", dtype=torch.float32)
    check_attention("native", device="cpu", dtype=torch.float32)


# What a user can get wrong


def test_a_network_without_attention_says_that_it_has_no_effect() -> None:
    with pytest.raises(UserError, match="Linear has no attention layers"):
        set_attention(nn.Linear(2, 2), "flash")


@pytest.mark.parametrize("name", ["flash", "cudnn", "xformers"])
def test_a_kernel_of_the_gpu_needs_one(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} needs a CUDA GPU"):
        check_attention(name, device="cpu", dtype=torch.bfloat16)


def test_a_gpu_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install xformers"):
        check_attention("xformers", device="cuda", dtype=torch.bfloat16)
    with pytest.raises(UserError, match="flash computes in bf16 or fp16 only"):
        check_attention("flash", device="cuda", dtype=torch.float32)
    check_attention("flash", device="cuda", dtype=torch.bfloat16)


def test_xformers_is_refused_where_diffusers_would_compute_something_else() -> None:
    net = network(OLD)
    layer = next(module for module in net.modules() if hasattr(module, "set_processor"))
    layer.set_processor(
        type("LinearAttnProcessor", (), {"__call__": lambda self, attn, hidden_states: hidden_states})()
    )
    with pytest.raises(UserError, match="xformers cannot replace the LinearAttnProcessor"):
        set_attention(net, "xformers")


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("style", [OLD, NEW])
@pytest.mark.parametrize("name", ["flash", "cudnn", "xformers"])
def test_outputs_and_gradients_are_those_of_native(style: str, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if name == "xformers":
        pytest.importorskip("xformers")
        try:
            check_attention(name, device="cuda", dtype=torch.bfloat16)
        except UserError as error:
            pytest.skip(str(error))
    net = attentive(style).to("cuda", torch.bfloat16)
    other = copy.deepcopy(net)
    set_attention(other, name)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        output, slope = call(net), gradient(net)
    assert float((call(other) - output).norm()) <= 2e-2 * float(output.norm())
    assert float((gradient(other) - slope).norm()) <= 5e-2 * float(slope.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("style", [OLD, NEW])
def test_without_cudnn_the_default_has_right_gradients(style: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = attentive(style).to("cuda", torch.bfloat16)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        slope = gradient(net)
    try:
        avoid_cudnn()
        assert float((gradient(net) - slope).norm()) <= 5e-2 * float(slope.norm())
        assert not any("cudnn" in op for op in kernels(net))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.gpu
@pytest.mark.parametrize("style", [OLD, NEW])
@pytest.mark.parametrize("name", FIRST)
def test_the_named_kernel_is_what_runs(style: str, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = attentive(style).to("cuda", torch.bfloat16)
    set_attention(net, name)
    used = kernels(net)
    assert used
    assert all(name in op for op in used)


def attentive(style: str) -> nn.Module:
    """A network whose output depends on its attention, with heads of 16 channels, which every kernel accepts."""
    net = network(style)
    if style == OLD:
        torch.manual_seed(0)
        net = UNet2DConditionModel.from_config({**net.config, "block_out_channels": (32, 64)}).eval()
    for name, weight in net.named_parameters():
        if name.endswith(("to_q.weight", "to_v.weight")):
            weight.data.mul_(8)
    return net


def gradient(net: nn.Module) -> Tensor:
    net.zero_grad()
    call(net).float().square().mean().backward()
    return torch.cat([weight.grad.float().flatten() for weight in net.parameters() if weight.grad is not None])


def kernels(net: nn.Module) -> set[str]:
    """Names of the fused attention operators that a call runs."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(net)
    names = {event.key for event in profile.key_averages()}
    return {n for n in names if n.startswith("aten::_scaled_dot_product") and "for_cpu" not in n and "fused" not in n}
