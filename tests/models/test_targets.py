"""Which layers get adapters: what is chosen by default, and names that are not there."""

import diffusers
import pytest
import tiny
from torch import nn

from fastgen.errors import UserError
from fastgen.models.targets import find_targets


def test_default_targets_are_tokens_in_transformers_and_convolutions_without_them():
    flux = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=1)
    names = find_targets(flux)
    assert len(names) == 17
    assert not [name for name in names if "norm" in name or "embed" in name or not name.startswith(("trans", "single"))]
    plain = tiny.unet()
    assert {name.split(".")[-1] for name in find_targets(plain)} == {
        "conv1",
        "conv2",
        "conv_shortcut",
        "to_q",
        "to_k",
        "to_v",
        "0",
    }
    assert not [name for name in find_targets(tiny.stable_diffusion().unet) if "transformer_blocks" not in name]


def test_an_unknown_target_is_refused_with_its_neighbours():
    with pytest.raises(UserError, match=r"'to_querry'.*to_q"):
        find_targets(tiny.stable_diffusion().unet, ("to_q", "to_querry"))
    with pytest.raises(UserError, match=r"no regular expression"):
        find_targets(tiny.stable_diffusion().unet, ("to_(",))
    with pytest.raises(UserError, match=r"lora\.targets"):
        find_targets(nn.Sequential(nn.Linear(2, 2)))
