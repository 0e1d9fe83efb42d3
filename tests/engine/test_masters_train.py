"""Networks trained in bf16: what they hold, that they resume bit for bit, and what follows them."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import small_run
import tiny
import torch
from torch import Tensor, nn

from fastgen.config.schema import Config
from fastgen.engine import checkpoint, ema
from fastgen.engine.dtypes import check_dtypes
from fastgen.engine.ema import EMA
from fastgen.engine.stage import Stage
from fastgen.errors import UserError
from fastgen.models.casting import cast
from fastgen.models.masters import halve, values_of
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2, LatentConsistency
from fastgen.objectives.parts.guidance_laws import Fixed

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ONE_FAKE_TURN = DMD2(ratio=1, guidance=Fixed(1.5))
LEAN = {
    "precision": "bf16",
    "masters": "bf16",
    "gradients": "bf16",
    "optim": {"name": "adamw8bit", "betas": (0.0, 0.9)},
}
EXACT = {"precision": "bf16", "masters": "split", "optim": {"name": "muon", "betas": (0.0, 0.9)}}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def everything(stage: Stage) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": t.clone() for group, held in stage.snapshot().tensors.items() for name, t in held.items()
    }


@pytest.mark.parametrize("settings", [LEAN, EXACT], ids=["lean", "exact"])
def test_a_run_in_bf16_resumes_bit_for_bit(pipeline: Pipeline, settings: dict[str, Any], tmp_path: Path):
    first, second = (small_run.stage(pipeline, ONE_FAKE_TURN, micro_batch=2, **settings) for _ in range(2))
    start = everything(first)
    first.cycle()
    second.restore(checkpoint.load(checkpoint.save(tmp_path, 1, first.snapshot(), keep=1)))
    assert first.cycle() == second.cycle()
    one, other = everything(first), everything(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    generator = [name for name in start if name.startswith("generator/")]
    assert sum(not torch.equal(start[name], one[name]) for name in generator) > 20
    held = torch.float32 if settings is EXACT else torch.bfloat16
    assert {one[name].dtype for name in generator} == {held}
    assert {p.dtype for p in first.roles.generator.parameters()} == {torch.bfloat16}


def small(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)).to(device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("masters", ["fp32", "split", "bf16"])
def test_the_average_is_that_of_the_masters_in_fp32(masters: Any, aside: bool, device: str):
    net = small(device) if masters == "fp32" else halve(small(device), masters, torch.float32)
    average, place = EMA(net, decay=0.5, aside=aside), "cpu" if aside else device

    def values() -> list[Tensor]:
        return [value.to(place, torch.float32, copy=True) for value in values_of([*net.parameters()])]

    expected = values()
    for n in range(1, 9):
        average.settle()
        net.load_state_dict({name: torch.randn(value.shape) for name, value in net.state_dict().items()})
        average.update()
        for mean, value in zip(expected, values(), strict=True):
            mean.lerp_(value, 1 - min(0.5, (1 + n) / (10 + n)))
    assert all(torch.equal(a, b) for a, b in zip(average.averages.values(), expected, strict=True))
    live = {name: value.clone() for name, value in net.state_dict().items()}
    with average.applied():
        for (name, held), mean in zip(net.state_dict().items(), expected, strict=True):
            assert torch.equal(held, mean.to(held)), name
    assert all(torch.equal(value, live[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("waits", [True, False])
def test_no_update_overtakes_an_average_in_main_memory(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, waits: bool
):
    begin = ema._Thread.begin

    def late(self: Any, work: Any) -> None:
        begin(self, lambda: time.sleep(0.3) or work())

    beside = small_run.stage(pipeline, small_run.KD, ema=0.5)
    aside = small_run.stage(pipeline, small_run.KD, ema=0.5, ema_device="cpu")
    monkeypatch.setattr(ema._Thread, "begin", late)
    if not waits:
        monkeypatch.setattr(EMA, "settle", lambda self: None)
    for stage in (beside, aside):
        for _ in range(2):
            stage.cycle()
    aside.ema._thread.settle()
    pairs = zip(beside.ema.averages.values(), aside.ema.averages.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == waits


def test_an_average_in_main_memory_is_made_while_the_other_turns_go_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    fake_turn, met = threading.Event(), list[bool]()
    begin, turn = ema._Thread.begin, Stage._turn

    def late(self: Any, work: Any) -> None:
        fake_turn.clear()
        begin(self, lambda: (met.append(fake_turn.wait(20)), work())[-1])

    def told(self: Stage, one: Any, batches: Any) -> Any:
        taken = turn(self, one, batches)
        if one[0] == "fake_score":
            fake_turn.set()
        return taken

    two_fake_turns, settings = DMD2(ratio=2, guidance=Fixed(1.5)), {"precision": "bf16", "masters": "split", "ema": 0.5}
    beside, aside = (
        small_run.stage(pipeline, two_fake_turns, ema_device=device, **settings) for device in ("auto", "cpu")
    )
    monkeypatch.setattr(ema._Thread, "begin", late)
    monkeypatch.setattr(Stage, "_turn", told)
    for stage in (aside, beside):
        for _ in range(2):
            stage.cycle()
    one, other = everything(beside), everything(aside)
    assert met == [True, True], "a fake turn ended meanwhile, and the snapshot waited"
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
@CUDA
def test_a_large_average_is_made_in_main_memory_while_the_device_works():
    net = nn.Linear(16_384, 8_192, device="cuda")
    average, expected = EMA(net, decay=0.5, aside=True), EMA(net, decay=0.5)
    for one in (average, expected):
        one.update()  # page-locked memory is made once
        one.settle()
    with torch.no_grad():
        net.weight.normal_()
    average.update(blocked=torch.zeros((), device="cuda"))
    torch.cuda._sleep(20_000_000_000)  # ten seconds of a device that turns elsewhere
    end = torch.cuda.Event()
    end.record()
    average.settle()
    assert not end.query(), "the copies and the average wait for nothing that was launched after them"
    expected.update()
    assert all(
        torch.equal(a, b.cpu()) for a, b in zip(average.averages.values(), expected.averages.values(), strict=True)
    )
    average.update(blocked=torch.ones((), device="cuda"))
    assert average.updates == 2


def test_a_target_follows_the_masters_and_not_what_they_are_rounded_to(pipeline: Pipeline):
    stage = small_run.stage(pipeline, LatentConsistency(ema=0.9), precision="bf16", masters="split")
    target = [p.clone() for p in stage.roles.parameters("target")]
    stage.cycle()
    live = [p.detach().clone() for p in stage.roles.parameters("generator")]
    masters = [value.clone() for value in values_of(stage.roles.parameters("generator"))]
    stage.cycle()
    followed, rounded = ([a.lerp(b.float(), 0.1) for a, b in zip(target, now, strict=True)] for now in (masters, live))
    found = stage.roles.parameters("target")
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(found, followed, strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(found, rounded, strict=True))


def test_a_teacher_of_the_right_dtype_is_lent_and_not_copied(pipeline: Pipeline):
    def places(net: nn.Module) -> set[int]:
        return {p.data_ptr() for p in net.parameters()}

    for precision, lent in (("fp32", True), ("bf16", False)):
        roles = small_run.stage(pipeline, ONE_FAKE_TURN, precision=precision).roles
        assert (places(roles.real_score.net) == places(pipeline.network)) == lent
        assert not places(pipeline.network) & (places(roles.generator.net) | places(roles.fake_score.net))
    half = Pipeline(tiny.class_conditional())
    cast(half.network, torch.bfloat16)
    assert places(small_run.stage(half, ONE_FAKE_TURN, precision="bf16").roles.real_score.net) == places(half.network)


@pytest.mark.parametrize("wanted", [True, False])
def test_products_are_rounded_to_tf32_within_a_cycle_alone(pipeline: Pipeline, wanted: bool):
    seen: list[str] = []

    class Watching(type(small_run.KD)):
        def generator(self, roles: Any, batch: Any) -> Any:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return super().generator(roles, batch)

    before = torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()
    small_run.stage(pipeline, Watching(), tf32=wanted).cycle()
    assert seen == ["tf32" if wanted else before[0]]
    assert (torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()) == before


def refused(folder: Path, **train: Any) -> None:
    sharing = train.pop("sharing", "full")
    config = small_run.run_config(
        folder, sharing=sharing, stages=[{"objective": {"name": "kd"}, "train": {"images": 4, **train}}]
    )
    check_dtypes(Config.model_validate(config))


def test_masters_that_would_not_be_what_they_say_are_refused(tmp_path: Path):
    refused(tmp_path, masters="split", precision="bf16")
    with pytest.raises(
        UserError, match=r"'kd' has train.masters split, .*train.precision fp32: set train.precision=bf16"
    ):
        refused(tmp_path, masters="split")
    with pytest.raises(UserError, match=r"train.masters bf16, but with sharing=lora .*: leave masters out"):
        refused(tmp_path, masters="bf16", precision="bf16", sharing="lora")
    with pytest.raises(UserError, match=r"train.gradients bf16, but weights in fp32.*masters to split or bf16"):
        refused(tmp_path, gradients="bf16")
