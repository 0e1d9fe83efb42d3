"""A discriminator of jumps reads start and end, each at its own time, and learns by both."""

import pytest
import torch
from torch import nn
from towers import NOTHING, T, Tower, network

from fastgen.models.conditioning import Conditioning
from fastgen.models.discriminator import MapHead, TokenHead, side_by_side
from fastgen.models.jump_discriminator import JumpDiscriminator
from fastgen.models.own_backbone import OwnDiscriminator


def judge_of_two() -> OwnDiscriminator:
    judge = OwnDiscriminator(network(Tower()), ("layers.1",), (torch.randn(3, 4), T, NOTHING), width=2)
    nn.init.normal_(judge.heads[0].logit.weight)
    return judge


def test_heads_read_twice_the_channels():
    assert judge_of_two().heads[0].body[0].normalized_shape == (8,)
    for shape, expected in (((2, 3, 5, 5), (2, 6, 5, 5)), ((2, 3, 2, 5, 5), (2, 6, 2, 5, 5)), ((2, 7, 3), (2, 7, 6))):
        assert side_by_side([torch.zeros(shape)] * 2).shape == expected
    assert MapHead(6, 5)(torch.zeros(2, 6, 5, 5)).shape == TokenHead(6)(torch.zeros(2, 7, 6)).shape == (2,)


def test_ends_that_are_judged_together_have_one_start_in_the_same_row():
    judge, (start, one, other) = judge_of_two(), torch.randn(3, 3, 4)
    told = JumpDiscriminator(judge, start, 0.5 * T, NOTHING)
    both = told(torch.cat([one, other]), torch.cat([T, T]), Conditioning.cat([NOTHING, NOTHING]))
    torch.testing.assert_close(both, torch.cat([told(end, T, NOTHING) for end in (one, other)]))
    seen, began = judge.features(one, T, NOTHING), judge.features(start, 0.5 * T, NOTHING)
    torch.testing.assert_close(told(one, T, NOTHING), judge.judged([torch.cat([seen[0], began[0]], 1)], NOTHING))
    moved = JumpDiscriminator(judge, start.flip(0), 0.5 * T, NOTHING)
    assert not torch.allclose(moved(one, T, NOTHING), told(one, T, NOTHING))


@pytest.mark.parametrize("which", ["start", "end"])
def test_backbone_and_heads_learn_by_either(which: str):
    judge, (start, end) = judge_of_two(), torch.randn(2, 3, 4)
    judge.requires_grad_(True)
    side = slice(4) if which == "end" else slice(4, 8)
    with torch.no_grad():
        judge.heads[0].body[1].weight[:, 4:] *= which == "start"
        judge.heads[0].body[1].weight[:, :4] *= which == "end"
    JumpDiscriminator(judge, start, T, NOTHING)(end, T, NOTHING).square().sum().backward()
    assert judge.heads[0].body[1].weight.grad[:, side].abs().sum() > 0
    assert {name for name, p in judge.named_parameters() if p.grad is None} == judge.unread
    assert judge.unread
