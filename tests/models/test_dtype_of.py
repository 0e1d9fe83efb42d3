"""What a network is said to be in: as Diffusers has it, read afresh at every call, and without a walk."""

import pytest
import tiny
import torch
from torch import nn

from fastgen.models.casting import cast, dtype_of
from fastgen.models.experts import Experts


def network() -> nn.Module:
    return tiny.class_conditional(size=16, channels=1).unet


def keeping(*parts: str) -> nn.Module:
    """A network whose first weights stay in float32."""
    net = network()
    net._keep_in_fp32_modules = list(parts)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [(), ("conv_in",)])
def test_it_is_what_diffusers_says(dtype: torch.dtype, kept: tuple[str, ...]):
    net = cast(keeping(*kept), dtype)
    assert next(net.parameters()).dtype == (torch.float32 if kept else dtype)
    assert dtype_of(net) == net.dtype == dtype
    assert dtype_of(Experts(net, network(), boundary=0.5)) == dtype


def test_no_answer_is_kept():
    net = network()
    assert dtype_of(net) == torch.float32
    assert dtype_of(net.to(torch.bfloat16)) == torch.bfloat16
    net.load_state_dict({name: value.half() for name, value in net.state_dict().items()}, assign=True)
    assert dtype_of(net) == torch.float16
    net.conv_in = nn.Conv2d(1, net.conv_in.out_channels, 3, padding=1, dtype=torch.float64)
    assert dtype_of(net) == torch.float64


def test_a_network_stored_in_eight_bits_is_in_what_it_computes_in():
    net = network()
    net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert next(net.parameters()).dtype == torch.float8_e4m3fn
    assert dtype_of(net) == torch.bfloat16


def test_it_ends_at_the_first_weights(monkeypatch: pytest.MonkeyPatch):
    net, walk, entered = network(), nn.Module.named_modules, []

    def counted(self: nn.Module, *given: object, **named: object) -> object:
        entered.append(self)
        return walk(self, *given, **named)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    dtype_of(net)
    assert 0 < len(entered) <= 3
