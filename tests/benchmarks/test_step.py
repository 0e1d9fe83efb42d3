"""The step benchmark on a tiny network, and what its watches count."""

import json

import pytest
import torch

from benchmarks import operations
from benchmarks.networks import SIZES
from benchmarks.step import main
from benchmarks.trio import Setting, config_of
from benchmarks.watches import Operations, _gaps, _longest, flops, medians
from fastgen.models.targets import find_targets

TINY = (
    "--size",
    "tiny",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--rank",
    "1",
    "--batch",
    "2",
    "--cycles",
    "1",
    "--warmup",
    "0",
)


@pytest.mark.parametrize(("size", "millions"), [("sdxl", 2567.5), ("cifar", 47.7)])
def test_networks_are_of_real_size(size, millions):
    net = SIZES[size].built(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def test_a_step_is_measured_beside_a_plain_loop(tmp_path):
    found = main([*TINY, "--fake-turns", "2", "--out", str(tmp_path / "step.json")])
    assert json.loads((tmp_path / "step.json").read_text()) == json.loads(json.dumps(found))
    seconds = found["seconds"]
    assert seconds["cycle"] == pytest.approx(seconds["generator"] + 2 * seconds["fake_score"])
    assert found["images_per_second"] == pytest.approx(2 * 3 / seconds["cycle"])
    assert 1 < found["flops"] / found["plain"]["flops"] < 1.3  # the same calls, and adapters


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["lora", "full"])
def test_a_gan_and_both_sharings_are_measured(sharing):
    more = ("--fake-turns", "1", "--sharing", sharing, "--no-plain", "--profile")
    with_gan, without = (main([*TINY, *more, gan]) for gan in ("--gan", "--no-gan"))
    assert 1.1 < with_gan["flops"] / without["flops"] < 2
    assert 1000 < without["profile"]["operations"] < with_gan["profile"]["operations"]


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["ample", "low"])
def test_a_base_in_float8_is_measured(memory):
    told = (*TINY, "--precision", "bf16", "--base", "fp8", "--memory", memory, "--fake-turns", "1", "--no-plain")
    setting = main(told)["setting"]
    assert (setting["base"], setting["memory"]) == ("fp8", memory)


@pytest.mark.parametrize(("checkpointing", "every", "recomputed"), [(True, 1, 1), (True, 2, 2), (False, 2, 0)])
def test_so_many_blocks_are_computed_again(checkpointing, every, recomputed):
    assert config_of(Setting(checkpointing=checkpointing, every=every)).train.recomputed == recomputed


@pytest.mark.slow
def test_an_adapted_layer_is_two_operations_more():
    counts = operations.main(["--size", "tiny", "--rank", "1"])
    layers = len(find_targets(SIZES["tiny"].built(torch.device("meta"), torch.float32)))
    assert counts["adapter"]["all"] - counts["base"]["all"] == 2 * layers
    backward = counts["backward, stored"]["all"]
    assert backward < counts["backward, checkpointed"]["all"] < backward + counts["adapter"]["all"]


def test_when_nothing_runs_is_told_by_what_ran_before_and_after():
    spans = [(0, 2, "a"), (1, 3, "b"), (5, 9, "a"), (5.5, 5.6, "c"), (12, 13, "b"), (17, 18, "a")]
    assert _gaps(spans) == [(2, "b", "a"), (3, "a", "b"), (4, "b", "a")]
    assert _longest(_gaps(spans)) == [(pytest.approx(6e-6), 2, "b", "a"), (pytest.approx(3e-6), 1, "a", "b")]


def test_what_is_counted():
    a = torch.ones(8, 8, requires_grad=True)
    with Operations() as seen:
        (a.t() @ a).sum().backward()
    assert seen.counted["aten.mm.default"] == 3
    assert not [name for name in seen.counted if "aten.t." in name or "expand" in name]
    assert flops(lambda: (a @ a).sum().backward()) == 3 * 2 * 8**3
    assert flops(lambda: torch.zeros(8, 8).addmm_(a.detach(), a.detach())) == 2 * 8**3
    laps = [[("a", 1.0), ("b", 2.0), ("b", 4.0)], [("a", 5.0), ("b", 1.0), ("b", 1.0)], [("a", 2.0), ("b", 9.0)]]
    assert medians(laps) == {"a": 2.0, "b": 3.0, "cycle": 7.0}
