"""Sampling in less time or memory: layers that are rounded, blocks that are compiled, and what cannot be."""

import json

import pytest
import tiny
import torch

from fastgen.cli import main
from fastgen.models.float8 import Float8Linear
from fastgen.sampling import faster
from fastgen.sampling.faster import Faster
from fastgen.sampling.stock import generate


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    place = tmp_path_factory.mktemp("faster") / "dit"
    tiny.dit().save_pretrained(place)
    return place


def drawn(pipe) -> torch.Tensor:
    return torch.cat([one.images for one in generate(pipe, seeds=[0, 1], labels=[0, 1], steps=2, progress=False)])


def test_rounded_weights_draw_nearly_the_same():
    plain, rounded = (tiny.dit().to(torch.bfloat16) for _ in range(2))
    Faster(weights="fp8").prepare(rounded, "cpu")
    kinds = [type(module) for module in rounded.transformer.modules()]
    assert Float8Linear in kinds
    difference = (drawn(plain) - drawn(rounded)).abs().mean()
    assert 0 < difference < 0.05


def test_options_of_the_command_reach_the_pipeline_and_are_recorded(dit, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(faster, "compile_regions", compiled.append)
    flags = ["--labels", "1", "--steps", "2", "--dtype", "bfloat16", "--weights", "fp8", "--compile", "--device", "cpu"]
    assert main(["sample", str(dit), *flags, "--out", str(tmp_path)]) == 0
    (network,) = compiled
    assert any(isinstance(module, Float8Linear) for module in network.modules())
    record = json.loads((tmp_path / "samples.json").read_text())
    assert (record["weights"], record["compiled"], record["dtype"]) == ("fp8", True, "bfloat16")


@pytest.mark.parametrize(
    ("settings", "told", "complaint"),
    [
        ({"weights": "fp8"}, {"dtype": "float32"}, "computes in bf16, and --dtype is float32"),
        ({"weights": "fp8"}, {"lora": True}, "a LoRA on its base: give the whole student"),
        ({"weights": "nf4"}, {}, "needs bitsandbytes"),
    ],
)
def test_what_cannot_be_rounded_is_said_before_anything_is_loaded(monkeypatch, settings, told, complaint):
    monkeypatch.setattr(faster, "find_spec", lambda _: None)
    with pytest.raises(faster.UserError, match=complaint):
        Faster(**settings).check(**{"dtype": "bfloat16", "lora": False, **told})


def test_a_network_without_a_stack_of_blocks_is_not_compiled():
    pipe = tiny.dit()
    pipe.transformer.transformer_blocks = torch.nn.ModuleList()
    with pytest.raises(faster.UserError, match="has no stack of blocks to compile: leave out --compile"):
        Faster(compile=True).prepare(pipe, "cpu")


@pytest.mark.slow
def test_compiled_blocks_draw_the_same():
    plain, compiled = (tiny.dit() for _ in range(2))
    Faster(compile=True).prepare(compiled, "cpu")
    torch.testing.assert_close(drawn(plain), drawn(compiled), rtol=1e-4, atol=1e-4)
