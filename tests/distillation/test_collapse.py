"""Pictures that no teacher draws are said to be what they are."""

import pytest
import torch
from torch import Tensor, nn

from fastgen.distillation.collapse import alarms

DRAWN = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def zeroed() -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("pictures", "generator", "said"),
    [
        (DRAWN, nn.Linear(2, 2), ""),
        (DRAWN, zeroed(), "all weights of the generator are zero"),
        (DRAWN[:1].expand(6, -1, -1, -1) + 1e-4 * DRAWN, nn.Linear(2, 2), "6 pictures of different seeds are equal"),
        (torch.linspace(-0.5, 0.5, 6).reshape(6, 1, 1, 1).expand(6, 3, 8, 8), nn.Linear(2, 2), "has one colour"),
        (DRAWN.sign(), nn.Linear(2, 2), "100% of its pictures' values are at the ends"),
        (DRAWN * torch.nan, nn.Linear(2, 2), "its pictures are not finite"),
    ],
)
def test_a_collapse_is_named(pictures: Tensor, generator: nn.Module, said: str):
    found = list(alarms(pictures, generator))
    assert len(found) == (said != "")
    assert all(said in sentence for sentence in found)
