"""Roles whose regions are compiled train as written ones."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import small_run
import torch
from accelerate import Accelerator
from compiling import LEVELS, SMALL, Compiler, compiling
from torch.utils.checkpoint import CheckpointError

from benchmarks.networks import Size
from benchmarks.trio import Setting, stage_on
from fastgen.engine.stage import Stage
from fastgen.models.adapters import SharedNetwork
from fastgen.models.regions import Recompilations, Region

EVERY_LEVEL = ["DownBlock2D", "AttnDownBlock2D", "AttnUpBlock2D", "UpBlock2D", "UNetMidBlock2D", "GroupNorm"]
TRIO = Setting(rank=2, batch=2, gan=True, checkpointing=True, compile=True, precision="fp32", fake_turns=2)


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    with compiling() as found:
        yield found


def trained(setting: Setting, cycles: int, size: Size = SMALL) -> small_run.Record:
    torch.manual_seed(0)
    return small_run.recorded(stage_on(size, setting, Stage, Accelerator(cpu=True)), cycles)


def furthest(found: small_run.Record, expected: small_run.Record) -> float:
    """The largest distance of two gradients of one role in one update, relative to the larger."""
    return max(
        float((a - b).norm() / b.norm())
        for role, gradients in expected.gradients.items()
        for a, b in zip(found.gradients[role], gradients, strict=True)
    )


def ways() -> Iterator[Any]:
    """All with a discriminator but the quickest, which alone is not slow."""
    for sharing, checkpointing, gan in product(("lora", "full"), (True, False), (True, False)):
        quick = (sharing, checkpointing, gan) == ("lora", True, False)
        if gan or quick:
            yield pytest.param(sharing, checkpointing, gan, marks=[pytest.mark.slow] * (not quick))


@pytest.mark.parametrize(("sharing", "checkpointing", "gan"), ways())
def test_compiled_roles_train_in_turn_as_written_ones(sharing: Any, checkpointing: bool, gan: bool, compiler: Compiler):
    setting = replace(TRIO, sharing=sharing, checkpointing=checkpointing, gan=gan)
    expected = trained(replace(setting, compile=False), 3)
    torch.manual_seed(0)
    stage = stage_on(SMALL, setting, Stage, Accelerator(cpu=True))
    found = small_run.recorded(stage, 1)
    counted = compiler.count
    assert counted > 0
    stage.cycle()
    stage.cycle()
    assert compiler.count == counted, "compiled again after the first cycle"
    assert furthest(found, expected) < 1e-5
    assert len(found.gradients["fake_score"]) == 6


@pytest.mark.parametrize(
    ("size", "sharing", "one_pass", "levels"),
    [
        (SMALL, "full", False, ["DownBlock2D", "UpBlock2D", "UNetMidBlock2D", "GroupNorm"]),
        pytest.param(LEVELS, "full", False, EVERY_LEVEL, marks=pytest.mark.slow),
        pytest.param(LEVELS, "lora", True, EVERY_LEVEL, marks=pytest.mark.slow),
    ],
)
def test_compiled_levels_train_in_turn_as_written_ones(
    size: Size, sharing: Any, one_pass: bool, levels: list[str], compiler: Compiler
):
    setting = replace(TRIO, sharing=sharing, checkpointing=False, compile="all", one_pass=one_pass)
    expected = trained(replace(setting, compile=False), 3, size)
    torch.manual_seed(0)
    stage = stage_on(size, setting, Stage, Accelerator(cpu=True))
    net: Any = stage.roles.members["generator"].net
    assert [type(part).__name__ for part in net.modules() if isinstance(part, Region)] == levels
    found = small_run.recorded(stage, 1)
    counted = compiler.count
    stage.cycle()
    stage.cycle()
    assert compiler.count == counted > 0, "compiled again after the first cycle"
    assert furthest(found, expected) < 5e-5  # measured: 1.5e-5, by six updates of networks of five levels


@pytest.mark.slow
def test_a_role_that_is_left_before_its_blocks_are_computed_again_is_noticed(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SharedNetwork, "_switches_in", lambda self, block: [])
    with pytest.raises(CheckpointError, match="different number of tensors"):
        trained(TRIO, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "size"), [(TRIO, SMALL), (replace(TRIO, sharing="full", checkpointing=False, compile="all"), LEVELS)]
)
def test_inductor_trains_alike(setting: Setting, size: Size):
    expected = trained(replace(setting, compile=False), 2, size)
    assert furthest(trained(setting, 2, size), expected) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "compiled", "checkpointing"), [(SMALL, True, False), (SMALL, True, True), (LEVELS, "all", False)]
)
@pytest.mark.parametrize("sharing", ["lora", "full"])
def test_compiled_blocks_train_alike_on_a_card_under_graphs(
    sharing: Any, size: Size, compiled: Any, checkpointing: bool
):
    """The kernels of a card round otherwise than written ones: sums in float32, which TF32 must not shorten."""
    setting = replace(TRIO, sharing=sharing, checkpointing=checkpointing, compile=compiled, graphs=True)
    torch.manual_seed(0)
    written = small_run.recorded(stage_on(size, replace(setting, compile=False, graphs=False), Stage, Accelerator()), 4)
    torch.manual_seed(0)
    stage = stage_on(size, setting, Stage, Accelerator())
    recompilations, found = Recompilations(watched=True), small_run.recorded(stage, 0)
    for _ in range(4):
        with recompilations.cycle() as reasons:
            stage.cycle()
        assert not reasons
    assert furthest(found, written) < 3e-3  # measured: 1.7e-3
