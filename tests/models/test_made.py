"""Tensors are made on the device of what they are made of, wherever an adapter's factors are."""

import pytest
import torch
from torch import Tensor, nn

from fastgen.models.made import Made, in_float32
from fastgen.models.merging import adding, low_rank_updates

ALPHA = 3.0


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
