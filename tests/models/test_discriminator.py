"""The discriminator: heads on the features of a network, one logit for each layer."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from towers import NOTHING, T, Tower, network

from fastgen.errors import UserError
from fastgen.models.denoiser import NetworkDenoiser
from fastgen.models.discriminator import Discriminator, block_layers, default_layers


class Shapes(nn.Module):
    """One layer for each rank of feature that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 5)
        self.vector = nn.Linear(5, 7)
        self.video = nn.Conv3d(6, 4, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.map(sample)
        tokens = self.tokens(h.flatten(2).transpose(1, 2))
        self.vector(tokens.mean(dim=1))
        self.video(torch.stack([h, h + timestep.reshape(-1, 1, 1, 1)], dim=2))
        return sample


LAYERS = ("map", "tokens", "vector", "video")


def discriminator(size: int = 16, **options: str) -> tuple[Discriminator, NetworkDenoiser, tuple]:
    backbone = network(Shapes())
    example = (torch.randn(3, 3, size, size), T, NOTHING)
    return Discriminator(backbone, LAYERS, example, **options), backbone, example


@pytest.mark.parametrize("size", [3, 4, 6, 16])
def test_there_is_one_logit_per_layer_zero_at_first(size: int):
    judge, _, example = discriminator(size)
    assert torch.equal(judge(*example), torch.zeros(3, 4))


def test_every_head_learns_and_the_backbone_is_not_its_own():
    judge, backbone, example = discriminator()
    own = {id(parameter) for parameter in judge.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in backbone.parameters())
    backbone.requires_grad_(False)
    nn.init.normal_(judge.heads[3].frame.logit.weight)
    for head in (judge.heads[0], judge.heads[1], judge.heads[2]):
        nn.init.normal_(head.logit.weight)
    x_t = example[0].requires_grad_()
    logits = judge(x_t, *example[1:])
    for column in range(4):
        (slope,) = torch.autograd.grad(logits[1, column], x_t, retain_graph=True)
        assert slope[1].abs().sum() > 0
        assert slope[[0, 2]].abs().sum() == 0
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_ratio_is_the_mean_logit_of_a_logistic_discriminator():
    judge, _, example = discriminator()
    nn.init.ones_(judge.heads[0].logit.bias)
    torch.testing.assert_close(judge.ratio(*example), torch.full((3,), 0.25))


def test_default_layers_are_the_bottleneck_or_the_middle():
    tower, example = Tower(), (torch.randn(3, 4), T, NOTHING)
    assert default_layers(tower, network(tower), example) == ("layers.2",)
    tower.mid_block = nn.Identity()
    assert default_layers(tower, network(tower), example) == ("mid_block",)
    with pytest.raises(UserError, match=r"name discriminator\.layers"):
        default_layers(Shapes(), network(Shapes()), (torch.randn(3, 3, 4, 4), T, NOTHING))


def test_every_block_is_read_that_the_image_passes_through():
    tower, example = Tower(order=(0, 2, 3)), (torch.randn(3, 4), T, NOTHING)
    assert block_layers(tower, network(tower), example) == ("layers.0", "layers.2", "layers.3")
    with pytest.raises(UserError, match=r"name discriminator\.layers"):
        block_layers(Shapes(), network(Shapes()), (torch.randn(3, 3, 4, 4), T, NOTHING))


def test_a_place_that_a_network_leaves_empty_is_no_block():
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    net = UNet2DModel(**sizes, **plain, add_attention=False)
    assert list(net.mid_block.attentions) == [None]
    found = block_layers(net, network(net), (torch.randn(3, 1, 8, 8), T, NOTHING))
    assert set(found) >= {"down_blocks.0", "mid_block", "mid_block.resnets.1", "up_blocks.1"}
