"""What a run costs, counted without weights: against bytes and operations known by hand, and against measured runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.networks import SIZES
from benchmarks.predicted import forecast_of
from benchmarks.trio import Setting
from fastgen.models.adapters import Adaptation, SharedNetwork
from fastgen.planning.card import NOWHERE, on_card
from fastgen.planning.cards import GIB, H100
from fastgen.planning.echo import Echoes
from fastgen.planning.forecast import Forecast, TurnCost
from fastgen.planning.held import Part
from fastgen.planning.meter import Meter, Tally
from fastgen.planning.pools import KEPT

MIB = 2**20


def test_a_meter_sees_what_lives_at_once():
    with Meter() as meter:
        a = torch.empty(MIB, device=NOWHERE)  # 4 MiB
        with meter.measured() as seen:
            b = a + a
            c = b * 2
            del b
        view = c.view(2, -1)
        assert (meter.level, meter.peak) == (8 * MIB, 12 * MIB)
        assert (seen.peak, seen.left) == (8 * MIB, 4 * MIB)
        del a, c
        assert meter.level == 4 * MIB, "a view keeps its memory"
        del view
    assert meter.level == 0
    assert meter.work == Tally(launches=2, moved=(3 + 2) * 4 * MIB)


def test_products_are_counted_by_precision_and_a_view_is_no_launch():
    half, full = (torch.empty(8, 16, dtype=dtype, device=NOWHERE) for dtype in (torch.bfloat16, torch.float32))
    with Meter() as meter:
        half @ half.t()
        full @ full.t()
    assert meter.work == Tally(launches=2, half_flops=2 * 8 * 8 * 16, full_flops=2 * 8 * 8 * 16)


def test_attention_and_autocast_are_those_of_a_card():
    query = torch.empty(1, 2, 64, 32, dtype=torch.bfloat16, device=NOWHERE)
    layers = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32)).to(NOWHERE)
    meter = Meter()
    with on_card(meter):
        nn.functional.scaled_dot_product_attention(query, query, query)
        assert meter.work.launches == 1
        with torch.autocast("meta", dtype=torch.bfloat16):
            assert layers[0](torch.empty(4, 32, device=NOWHERE)).dtype == torch.bfloat16
            assert layers(torch.empty(4, 32, device=NOWHERE)).dtype == torch.float32
        assert layers(torch.empty(4, 32, device=NOWHERE)).dtype == torch.float32


def cost(checkpointed: bool, *, echoed: bool) -> tuple[Tally, int]:
    """Of a forward and a backward pass of a small SDXL with an adapter."""
    size = SIZES["tiny"]
    net = size.built(NOWHERE, torch.bfloat16)
    shared = SharedNetwork(net, ["generator"], Adaptation(1))
    if checkpointed:
        shared.checkpoint_blocks()
    shared.banks["generator"].requires_grad_(True)
    meter = Meter()
    x, t = torch.empty((2, *size.shape), dtype=torch.bfloat16, device=NOWHERE), torch.empty(2, device=NOWHERE)
    told = size.rows(2, torch.bfloat16).to(NOWHERE).kwargs
    with on_card(meter) as card, Echoes(meter, card).within([net] if echoed else []), shared.acting("generator"):
        net(x, t, **told, return_dict=False)[0].float().square().mean().backward()
    return meter.work, meter.peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_that_are_echoed_cost_what_they_cost_when_they_run(checkpointed):
    work, peak = cost(checkpointed, echoed=False)
    echo, highest = cost(checkpointed, echoed=True)
    assert echo.flops == pytest.approx(work.flops, rel=0.02)
    assert echo.launches == pytest.approx(work.launches, rel=0.03)
    assert echo.again == pytest.approx(work.again, rel=0.15), "a real block stops where its last value is made"
    assert bool(work.again) == checkpointed
    assert highest == pytest.approx(peak, rel=0.15 if checkpointed else 0.01)


@pytest.mark.slow
def test_less_memory_is_needed_where_blocks_are_computed_again_and_where_less_is_trained():
    small = {"rank": 1, "batch": 2, "fake_turns": 1}
    stored, again, gan = (
        forecast_of("tiny", Setting(**small, **more))
        for more in ({"checkpointing": False}, {"checkpointing": True}, {"checkpointing": True, "gan": True})
    )
    assert again.highest.peak < stored.highest.peak
    assert stored.work.again == 0 < again.work.again
    assert H100.seconds(stored.work) < H100.seconds(again.work) < H100.seconds(gan.work)
    assert {part.name for part in gan.parts} - {part.name for part in again.parts} == {
        "discriminator: weights",
        "discriminator: moments",
    }


def test_slices_share_what_lies_there_and_graphs_what_the_host_does():
    turn = TurnCost(
        ("generator",), Tally(launches=1000, half_flops=32 * 10**11), peak=30, made=30, gradients=24, shared=20
    )
    parts = (Part("generator: weights", 100, sliced=True), Part("codec", 8))
    whole = Forecast(parts, (turn, turn), cycles=1, rows=4, recorded=False)
    assert (whole.bytes, whole.sliced(4).bytes) == (138, 25 + 8 + 10 + 5)
    assert whole.sliced(4).highest.gradients == 4 + 5
    assert H100.cycle(whole) == pytest.approx(2 * 1000 * 39e-6)
    assert H100.cycle(replace(whole, recorded=True)) == pytest.approx(2 * 0.01)
    assert H100.cycle(whole, gpus=2) - H100.cycle(whole) == pytest.approx(2 * 24 / 300e9)


def test_pools_of_graphs_are_needed_and_not_allocated():
    turn = TurnCost(("generator",), Tally(), peak=30, made=50, gradients=24)
    parts = (Part("generator: weights", 100), Part(KEPT, 40))
    recorded = Forecast(parts, (turn,), cycles=1, rows=4, recorded=True)
    assert (recorded.allocated, recorded.bytes, recorded.kept) == (100 + 50, 100 + 40 + 30, 100 + 40 + 24)
    small = replace(recorded, parts=(parts[0], Part(KEPT, 5)))
    assert small.bytes == small.allocated == 150, "the first cycle has no graphs, and has to fit"
    assert replace(recorded, encoding=200).allocated == 200


def test_what_a_recorded_stage_allocates_is_what_its_calls_allocate():
    small = {"rank": 1, "batch": 2, "fake_turns": 1, "checkpointing": False, "guidance": 1.0}
    graphs, calls = (forecast_of("tiny", Setting(**small, graphs=graphs)) for graphs in (True, False))
    assert graphs.allocated == calls.allocated == calls.bytes
    assert graphs.bytes > graphs.allocated, "pools of calls with and without a backward pass are not shared"


LEAN: dict[str, Any] = {
    "sharing": "full",
    "gan": True,
    "masters": "bf16",
    "gradients": "bf16",
    "optimizer": "adamw8bit",
}
CIFAR: dict[str, Any] = {"sharing": "full", "gan": True, "batch": 256, "guidance": 1.5, "checkpointing": False}
MEASURED = {  # GiB allocated at most: one H100, torch 2.11 (docs/performance.md)
    "805ad94": ("sdxl", Setting(), 12.3),
    "805ad94, GAN": ("sdxl", Setting(gan=True), 14.9),
    "805ad94, stored": ("sdxl", Setting(checkpointing=False), 35.7),
    "805ad94, batch 1": ("sdxl", Setting(batch=1), 11.2),
    "1909e78, CIFAR": ("cifar", Setting(**CIFAR), 34.7),
    "1bbd72b, lean": ("sdxl", Setting(**LEAN), 36.6),
    "1bbd72b, lean, average in main memory": ("sdxl", Setting(**LEAN, ema_device="cpu"), 27.0),
    "d60e7cd, graphs": ("sdxl", Setting(graphs=True), 11.2),
    "d60e7cd, graphs, GAN": ("sdxl", Setting(gan=True, graphs=True), 12.4),
    "d60e7cd, graphs, GAN in one pass": ("sdxl", Setting(gan=True, one_pass=True, graphs=True), 12.0),
    "d60e7cd, graphs, stored": ("sdxl", Setting(checkpointing=False, graphs=True), 35.7),
    "d60e7cd, graphs, CIFAR": ("cifar", Setting(**CIFAR, graphs=True), 34.1),
    "d60e7cd, graphs, lean": ("sdxl", Setting(**LEAN, graphs=True), 39.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_peaks_are_those_that_were_measured(name):
    size, setting, gib = MEASURED[name]
    found = forecast_of(size, setting)
    print(f"{name}: {(found.allocated + H100.workspace) / GIB:.2f} allocated, {H100.needs(found) / GIB:.2f} needed")
    assert (found.allocated + H100.workspace) / GIB == pytest.approx(gib, rel=0.15)
