"""A network whose blocks are swapped against the same one that is whole: gradients, copies, their order and number."""

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from families import probed
from reaching import Reaching
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import NetworkDenoiser
from fastgen.models.offload import BlockSwap, blocks_of, is_swapped, swap_blocks
from fastgen.models.owned import owned
from fastgen.models.pipelines.attention import avoid_cudnn
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.quantised import quantise

CPU = torch.device("cpu")
SLOW = (
    *("ddpm", "stable_diffusion", "sd3", "flux2", "pixart_alpha", "pixart_sigma", "sana", "qwen_image", "z_image"),
    *("lumina2", "aura_flow", "hidream", "chroma", "ltx", "wan", "wan_of_two", "cogvideox", "hunyuan_video", "krea2"),
)
FAMILIES = [*("sdxl", "flux", "dit"), *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
COMPUTING = (
    *(torch.conv2d, torch.conv3d, nn.functional.conv2d, nn.functional.conv3d),
    *(nn.functional.linear, nn.functional.embedding),
)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def conditioning(pipeline: Pipeline) -> Conditioning:
    return pipeline.condition(2, labels=torch.tensor([0, 1]), prompts=["a", "a longer one"])


def adapted(pipeline: Pipeline, net: nn.Module, *, checkpointing: bool = True) -> AdaptedDenoiser:
    """A generator on a network, away from its zero update."""
    torch.manual_seed(1)
    shared = SharedNetwork(net, ["generator"], Adaptation(rank=2))
    with torch.no_grad():
        for p in shared.adapters["generator"].parameters():
            p += 0.1 * torch.randn(p.shape).to(p)
    if checkpointing:
        shared.checkpoint_blocks()
    speaker = NetworkDenoiser(net, pipeline.reading, pipeline.form)
    return AdaptedDenoiser(speaker, shared, "generator").requires_grad_(True)


def gradients(pipeline: Pipeline, model: AdaptedDenoiser, mode: Any = None) -> list[Tensor]:
    """The sample and the gradients to it and to the adapter, with a call of the base before the backward pass."""
    x = torch.randn((2, *pipeline.shape), generator=torch.Generator().manual_seed(3)).requires_grad_()
    t, cond = torch.tensor([0.3, 0.7], dtype=torch.float64), conditioning(pipeline)
    with mode or nullcontext():
        x0 = model(x, t, cond).x0
        with torch.no_grad():
            NetworkDenoiser(model.net, pipeline.reading, pipeline.form)(x, t, cond)
        x0.square().mean().backward()
    model.collect_gradients()
    return [x0.detach(), x.grad, *(tensor.grad for tensor in owned(model).tensors)]


@dataclass
class Fetches:
    """What a swap copies, in which order, and how many blocks' copies there are at most at a time."""

    names: list[str] = field(default_factory=list)
    most: int = 0
    _alive: list[tuple[str, weakref.ref[Tensor]]] = field(default_factory=list)

    @property
    def of(self) -> Callable[..., Any]:
        fetch = BlockSwap._fetch

        def recorded(swap: BlockSwap, name: str) -> Any:
            found = fetch(swap, name)
            self.names.append(name)
            self._alive = [(block, held) for block, held in self._alive if held() is not None]
            self._alive += [(name, weakref.ref(weight)) for weight in found.weights.values()]
            self.most = max(self.most, len({block for block, _ in self._alive}))
            return found

        return recorded


class NothingFromMainMemory(TorchFunctionMode):
    """Refuses operations on the weights that wait in main memory."""

    def __init__(self, swap: BlockSwap) -> None:
        super().__init__()
        self.hosts = {id(p) for weights in swap.hosts.values() for p in weights}
        self.computed = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COMPUTING:
            assert not any(id(x) in self.hosts for x in args)
            self.computed += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_whole_network_and_no_layer_reads_main_memory(name):
    pipeline = probed(name)
    whole = adapted(pipeline, copy.deepcopy(pipeline.network))
    net = copy.deepcopy(pipeline.network)
    swap = swap_blocks(net, CPU)
    swapped = adapted(pipeline, net)
    watch = NothingFromMainMemory(swap)
    for _ in range(2):  # the order of blocks is known the second time
        for one, other in zip(gradients(pipeline, swapped, watch), gradients(pipeline, whole), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert watch.computed > 4 * len(swap.hosts)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_float8_blocks_are_swapped_too(checkpointing):
    pipeline = probed("stable_diffusion")
    net = quantise(copy.deepcopy(pipeline.network), "fp8", CPU)
    whole, swapped = (adapted(pipeline, copy.deepcopy(net), checkpointing=checkpointing) for _ in range(2))
    swap_blocks(swapped.net, CPU)
    for model in (whole, swapped):
        model._denoiser.autocast = torch.bfloat16
    for one, other in zip(gradients(pipeline, swapped), gradients(pipeline, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_blocks_come_one_ahead_forwards_and_backwards_and_two_at_most(monkeypatch):
    pipeline, fetches = probed("flux"), Fetches()
    monkeypatch.setattr(BlockSwap, "_fetch", fetches.of)
    net = copy.deepcopy(pipeline.network)
    order = list(swap_blocks(net, CPU).hosts)
    model = adapted(pipeline, net)
    x, t = torch.randn(2, *pipeline.shape), torch.full((2,), 0.5, dtype=torch.float64)
    arrived: list[tuple[str, list[str]]] = []
    for name, block in blocks_of(net):
        block.register_forward_pre_hook(lambda *_, name=name: arrived.append((name, list(fetches.names))))
    for _ in range(2):
        fetches.names.clear()
        arrived.clear()
        belief = model(x, t, conditioning(pipeline))
    assert fetches.names == order
    assert [(name, names[-1]) for name, names in arrived] == list(zip(order, [*order[1:], order[-1]], strict=True))
    fetches.names.clear()
    arrived.clear()
    belief.x0.sum().backward()
    assert fetches.names == order[::-1]
    assert [name for name, _ in arrived] == order[::-1]
    assert [names[-1] for _, names in arrived] == [*order[::-1][1:], order[0]]
    assert fetches.most == 2


def test_a_layer_that_is_called_outside_of_its_block_comes_for_that_call_alone(monkeypatch):
    fetches = Fetches()
    monkeypatch.setattr(BlockSwap, "_fetch", fetches.of)
    whole = Reaching().requires_grad_(False)
    net = copy.deepcopy(whole)
    swap = swap_blocks(net, CPU)
    x = torch.randn(2, 4)
    for one in (net, alias(net)):
        held = [id(p) for p in one.parameters()]
        for _ in range(2):  # the order of blocks is known the second time
            fetches.names.clear()
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            with NothingFromMainMemory(swap) as watch:
                found = one(inputs[0])
            assert watch.computed == 9
            assert [id(p) for p in one.parameters()] == held
            assert torch.equal(found, whole(inputs[1]))
            found.sum().backward()
            whole(inputs[1]).sum().backward()
            assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert fetches.names == list(swap.hosts), "the order of blocks is theirs alone"


def test_what_stops_in_the_midst_of_a_block_leaves_no_copy_in_it(monkeypatch):
    pipeline, fetches = probed("flux"), Fetches()
    monkeypatch.setattr(BlockSwap, "_fetch", fetches.of)
    net = copy.deepcopy(pipeline.network)
    swap = swap_blocks(net, CPU)
    model = adapted(pipeline, net)
    name, block = list(blocks_of(net))[1]
    inner = next(
        path for path, layer in net.named_modules() if path.startswith(f"{name}.") and "lora_A" in layer._parameters
    )
    x, t = torch.randn(2, *pipeline.shape), torch.full((2,), 0.5, dtype=torch.float64)
    model(x, t, conditioning(pipeline))
    features = model.tap(x, t, conditioning(pipeline), [inner])
    assert features[0] is not None
    hosts = {id(p) for weights in swap.hosts.values() for p in weights}
    del features
    assert {id(p) for p in block.parameters() if p.ndim > 1} <= hosts
    with torch.no_grad():
        model(x, t, conditioning(pipeline))  # drops what had been fetched for the block after that one
    assert fetches.most == 2


def test_an_alias_is_swapped_with_its_network_and_a_copy_is_a_network_as_any_other():
    pipeline = probed("stable_diffusion")
    net = copy.deepcopy(pipeline.network)
    swap_blocks(net, CPU)
    other, copied = alias(net), copy.deepcopy(net)
    assert is_swapped(net)
    assert is_swapped(other)
    assert not is_swapped(copied)
    assert all(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))
    x, t = torch.randn(2, *pipeline.shape), torch.full((2,), 0.5, dtype=torch.float64)
    speakers = [NetworkDenoiser(one, pipeline.reading, pipeline.form) for one in (net, other, copied)]
    found = [speaker(x, t, conditioning(pipeline)).x0 for speaker in speakers]
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-5, atol=1e-7)


def test_what_tells_where_a_network_is_stays_on_its_device():
    net = nn.Sequential()
    net.add_module("blocks", nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]))
    assert list(swap_blocks(net, CPU).hosts) == ["blocks.1", "blocks.2"]


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("float8", [False, True], ids=["bf16", "fp8"])
def test_on_a_gpu_a_step_holds_few_blocks_and_its_gradients_are_the_same(float8):
    """Twelve blocks of 20 MiB and more, of which two are computed with, and one is waited for to be given back."""
    found, most = [], []
    for swapped in (False, True):
        net = wide_network()
        if float8:
            net = quantise(net, "fp8", "cuda").to("cpu")
        blocks = [sum(p.nbytes for p in block.parameters() if p.ndim > 1) for _, block in blocks_of(net)]
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        if swapped:
            swap_blocks(net, torch.device("cuda"))
        else:
            net.cuda()
        torch.cuda.reset_peak_memory_stats()
        found.append(step_gradients(net))
        most.append(torch.cuda.max_memory_allocated() - before)
        del net
    assert len(blocks) == 12
    saved = sum(blocks) - 3 * max(blocks)
    assert most[0] - most[1] > saved, f"{[size / 2**20 for size in most]} MiB, of which blocks {sum(blocks) / 2**20}"
    for one, other in zip(*found, strict=True):
        assert float(nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.9999
        assert one.any()


def wide_network() -> nn.Module:
    """A Flux of 1,024 channels, in bf16 on the CPU."""
    torch.manual_seed(0)
    settings = {"in_channels": 16, "num_layers": 6, "num_single_layers": 6, "num_attention_heads": 8}
    widths = {"attention_head_dim": 128, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    return FluxTransformer2DModel(**settings, **widths).eval().bfloat16().requires_grad_(False)


def step_gradients(net: nn.Module) -> list[Tensor]:
    """The gradients to a sample and to an adapter, of the third of three checkpointed steps."""
    torch.manual_seed(1)
    shared = SharedNetwork(net, ["generator"], Adaptation(rank=4))
    shared.checkpoint_blocks()
    with torch.no_grad():
        for p in shared.adapters["generator"].parameters():
            p += 0.02 * torch.randn(p.shape).to(p)
    avoid_cudnn()  # as runs do
    told = {
        "encoder_hidden_states": torch.randn(1, 8, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(256, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    told = {name: value.to("cuda", torch.bfloat16) for name, value in told.items()}
    bank = shared.banks["generator"]
    bank.requires_grad_(True)
    for _ in range(3):
        x = torch.randn(1, 256, 16).to("cuda", torch.bfloat16).requires_grad_()
        for p in bank.working.values():
            p.grad = None
        with shared.acting("generator"):
            net(x, **told).sample.float().square().mean().backward()
    factors = torch.cat([p.grad.float().flatten() for p in bank.working.values()])
    return [x.grad.float().cpu(), factors.cpu()]
