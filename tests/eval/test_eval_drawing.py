"""How pipelines are drawn for a report: what blocks of seeds cost, and what autocast computes in."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from eval.images.costs import Costs
from eval.images.pipelines import Draw, PipelineSource, pipelines
from eval.images.sources import Request
from fastgen.models.pipelines.opening import Opened
from fastgen.sampling.call import Asked


def source(folder: Path, *, dtype: str = "float32") -> PipelineSource:
    """A tiny class-conditional pipeline at two steps, five images a batch."""
    if not folder.exists():
        tiny.class_conditional(size=16).save_pretrained(folder)
    draw = Draw(seed=0, batch_size=5, device=torch.device("cpu"), dtype=dtype, request=Request())
    (only,) = pipelines(Opened(str(folder)), draw, steps=(2,), asked=Asked())
    return only


def images_of(source: PipelineSource, count: int) -> Tensor:
    return torch.cat([batch.images for batch in source.batches(range(count))])


def test_the_bill_is_of_all_blocks_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pace = [0.0], [1.0]

    def spend(*_: object) -> None:
        now[0] += pace[0]

    monkeypatch.setattr("eval.images.costs.perf_counter", lambda: now[0])
    first = source(tmp_path / "teacher")
    first.pipe.unet.register_forward_pre_hook(spend)
    images_of(first, 15)
    pace[0] = 100.0
    second = first.at(15)
    images_of(second, 5)
    bill = Costs.bill([second.costs], batch_size=5)
    assert second.costs.images == 20
    assert bill.nfe == 2
    assert bill.seconds_per_image == pytest.approx(2 / 5)  # the median of three quick batches and a slow one


def test_a_strip_of_many_seeds_costs_nothing(tmp_path: Path) -> None:
    teacher = source(tmp_path / "teacher")
    images_of(teacher, 5)
    assert sum(len(batch.images) for batch in teacher.strip(8)) == 8
    assert (teacher.costs.images, Costs.bill([teacher.costs], batch_size=5).nfe) == (5, 2)


def test_autocast_computes_in_bfloat16_on_float32_weights_and_samples(tmp_path: Path) -> None:
    casting = source(tmp_path / "teacher", dtype="autocast")
    inputs: set[torch.dtype] = set()
    outputs: set[torch.dtype] = set()

    def watch(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.add(args[0].dtype)
        outputs.add(output.dtype)

    unet = casting.pipe.unet
    unet.conv_in.register_forward_hook(watch)
    rounded = []
    for batch in casting.batches(range(10)):
        assert not torch.is_autocast_enabled("cpu")  # who measures the images does so in float32
        rounded.append(batch.images)
    assert (inputs, outputs) == ({torch.float32}, {torch.bfloat16})
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert casting.origin.dtype == "autocast"
    exact = images_of(source(tmp_path / "teacher"), 10)
    away = (torch.cat(rounded).float() - exact.float()).abs()
    assert 0 < away.mean() < 2
    images_of(replace(casting, draw=replace(casting.draw, dtype="float32")), 5)
    assert torch.float32 in outputs  # the pipeline is left as it was


def test_guidance_and_steps_stay_in_float32_under_autocast(tmp_path: Path) -> None:
    casting = replace(source(tmp_path / "teacher", dtype="autocast"), guided=1.5, steps=20)
    drawn = images_of(casting, 3)
    pipe = casting.pipe
    pipe.scheduler.set_timesteps(20)
    x = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    labels, null = torch.arange(3), torch.full((3,), 10)
    for t in pipe.scheduler.timesteps:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            both = pipe.unet(torch.cat([x, x]), t, class_labels=torch.cat([labels, null])).sample
        cond, uncond = both.float().chunk(2)
        x = pipe.scheduler.step(uncond + 1.5 * (cond - uncond), t, x).prev_sample
    assert torch.equal(drawn, ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
