"""Tensors are made on the device of what they are made of, wherever an adapter's factors are; by block as whole."""

import copy

import pytest
import torch
from families import probed
from peaks import peak_bytes
from torch import Tensor, nn

from fastgen.models.casting import cast
from fastgen.models.made import Made, in_float32
from fastgen.models.merging import adding, low_rank_updates
from fastgen.models.offload import moved_of, swap_blocks
from fastgen.models.targets import find_targets

ALPHA = 3.0
SLOW = ("stable_diffusion", "sdxl", "pixart_sigma", "sana", "qwen_image", "z_image", "wan_of_two", "hidream", "chroma")
FAMILIES = [*("ddpm", "dit", "sd3", "flux", "pixart_alpha"), *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]


def base(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 32), nn.Conv2d(4, 6, 3)).to(device, torch.bfloat16)


def adapter() -> dict[str, Tensor]:
    """Factors of rank 2 for both layers, in main memory."""
    random = torch.Generator().manual_seed(1)
    shapes = {"0.lora_A": (2, 48), "0.lora_B": (32, 2), "1.lora_A": (2, 4, 3, 3), "1.lora_B": (6, 2, 1, 1)}
    return {f"{name}.weight": torch.randn(*shape, generator=random) for name, shape in shapes.items()}


def merged_on(device: str) -> dict[str, Tensor]:
    made = Made(base(device), in_float32).then(adding(adapter(), alpha=ALPHA))
    return dict(made.named_parameters())


def test_tensors_are_made_where_the_network_is():
    for tensor in merged_on("meta").values():
        assert tensor.device.type == "meta"
        assert tensor.dtype == torch.float32
    updates = low_rank_updates(adapter(), alpha=ALPHA, device=torch.device("meta"))
    assert [update.device.type for _, update in updates] == ["meta", "meta"]


def test_a_low_rank_update_is_added_in_float32():
    made, factors = merged_on("cpu"), adapter()
    before = {name: weight.detach().double() for name, weight in base("cpu").named_parameters()}
    for layer in "01":
        up, down = (factors[f"{layer}.lora_{which}.weight"].double().flatten(1) for which in "BA")
        expected = before[f"{layer}.weight"] + (ALPHA / 2 * up @ down).view_as(before[f"{layer}.weight"])
        torch.testing.assert_close(made[f"{layer}.weight"].double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(made[f"{layer}.bias"].double(), before[f"{layer}.bias"])


@pytest.mark.gpu
def test_a_card_makes_what_a_cpu_makes():
    on_cpu, on_card = merged_on("cpu"), merged_on("cuda")
    for name, tensor in on_card.items():
        assert tensor.is_cuda
        torch.testing.assert_close(tensor.cpu(), on_cpu[name], rtol=1e-6, atol=1e-6)


def adapted(net: nn.Module) -> Made:
    """Two rows of every layer that a LoRA has by default are moved, in float32, over a base in bf16."""
    random = torch.Generator().manual_seed(1)
    factors = {}
    for name in find_targets(net):
        out, *given = net.get_submodule(name).weight.shape
        factors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(2, *given, generator=random)
        factors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(out, 2, *(1 for _ in given[1:]), generator=random)
    return Made(cast(net, torch.bfloat16), in_float32).then(adding(factors, alpha=ALPHA))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_by_block_answers_as_the_whole_one_and_leaves_its_base_as_it_is(name):
    pipeline = probed(name)
    made = adapted(copy.deepcopy(pipeline.network))
    before = {path: (parameter, parameter.clone()) for path, parameter in made.like.named_parameters()}
    cond = pipeline.condition(2, labels=torch.tensor([0, 1]), prompts=["a", "b"])
    x, t = torch.randn(2, *pipeline.shape), torch.tensor([0.3, 0.7], dtype=torch.float64)
    by_block = made.by_block("cpu")
    held = [id(parameter) for parameter in by_block.parameters()]
    with torch.no_grad():
        whole = pipeline.speaking(made.whole("cpu"))(x, t, cond)
        for _ in range(2):
            assert torch.equal(pipeline.speaking(by_block)(x, t, cond).x0, whole.x0)
            assert [id(parameter) for parameter in by_block.parameters()] == held
        base = pipeline.speaking(Made(made.like, in_float32).whole("cpu"))(x, t, cond)
    assert not torch.allclose(base.x0, whole.x0), "the adapter tells"
    for path, parameter in made.like.named_parameters():
        assert parameter is before[path][0]
        assert torch.equal(parameter, before[path][1])
    moved = sum(weight.numel() for _, _, weights in moved_of(made.like) for weight in weights)
    assert sum(p.numel() for p in by_block.parameters()) == sum(p.numel() for p in made.like.parameters()) - moved
    assert moved


def blocks(count: int, width: int) -> nn.Module:
    """A chain of blocks of two layers each behind a layer of its own."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(width, width, bias=False)
            self.register_buffer("shift", torch.ones(width, dtype=torch.bfloat16))
            self.register_buffer("table", torch.linspace(0, 1, width), persistent=False)
            pairs = (nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(2))) for _ in range(count))
            self.blocks = nn.ModuleList(pairs)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x) + self.shift + self.table
            for block in self.blocks:
                x = block(x)
            return x + self.blocks[0][1](x)

    torch.manual_seed(0)
    return cast(Chain(), torch.bfloat16)


def test_one_block_is_in_memory_at_a_time():
    width, x = 256, torch.randn(1, 256)
    base, one = blocks(16, width), 4 * 256**2
    by_block, whole = Made(base, in_float32).by_block("cpu"), Made(base, in_float32).whole("cpu")
    with torch.no_grad():
        assert 2 * one <= peak_bytes(lambda: by_block(x)) < 2.5 * one
        assert torch.equal(by_block(x), whole(x))
    assert by_block.shift.dtype == torch.float32
    assert by_block.table.dtype == torch.float32


def test_a_call_that_fails_lets_its_block_go():
    by_block = Made(blocks(2, 8), in_float32).by_block("cpu")
    by_block.blocks[1][1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        by_block(torch.randn(1, 8))
    assert [name for name, _ in by_block.named_parameters()] == ["first.weight"]


def test_tied_tensors_are_the_same_wherever_they_are():
    base = blocks(3, 8)
    base.blocks[1][0].weight = base.first.weight
    base.blocks[2][0].weight = base.blocks[0][0].weight
    made = Made(base, in_float32).then(lambda _, tensor: 2 * tensor)
    x = torch.randn(4, 8)
    assert torch.equal(made.by_block("cpu")(x), made.whole("cpu")(x))


def test_the_blocks_of_a_network_that_waits_in_main_memory_are_made_of_what_is_there():
    base, x = blocks(3, 8), torch.randn(4, 8)
    whole = Made(base, in_float32).whole("cpu")(x)
    swap_blocks(base, torch.device("cpu"))
    assert torch.equal(Made(base, in_float32).by_block("cpu")(x), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_card_holds_one_block_in_float32_at_a_time(home):
    base, x, one = blocks(16, 1024).to(home), torch.randn(1, 1024, device="cuda"), 4 * 1024**2
    made = Made(base, in_float32)
    by_block = made.by_block("cuda")
    with torch.no_grad():
        torch.testing.assert_close(by_block(x), made.whole("cuda")(x), rtol=1e-6, atol=1e-6)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        by_block(x)
        assert torch.cuda.max_memory_allocated() - before < 3 * one
    assert all(parameter.device.type == home for parameter in base.parameters())
