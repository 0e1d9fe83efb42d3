"""Stops that half precision holds, and what is refused of networks that cannot tell neighbouring times apart."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_needs
from fastgen.distillation.student import Student
from fastgen.errors import UserError
from fastgen.export.held import REACH, held_times
from fastgen.export.stock_schedulers import FlowTimes
from fastgen.models.pipelines.halved import in_bf16
from fastgen.models.pipelines.pipeline import Pipeline

RUN = """\
out: out
teacher: {path: nowhere}
data: {source: prompts, path: prompts.txt}
objective: {name: dmd2, gan: 0}
train: {images: 8, batch: 4}
"""


def pipeline_of(name: str) -> Pipeline:
    return Pipeline(FAMILIES[name].build(), size=FAMILIES[name].size)


@pytest.fixture(scope="module")
def flux() -> Pipeline:
    return pipeline_of("flux")


def student_of(pipeline: Pipeline, folder: Path, *options: str) -> Student:
    (folder / "run.yaml").write_text(RUN)
    return Student(load(folder / "run.yaml", list(options)), pipeline, torch.device("cpu"))


def halved(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).double()


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("shift", [1.0, 1.58, 3.0, 3.158, 12.0])
@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (1000.0, 0.0), (-1.0, 1.0)])
def test_schedulers_of_both_kinds_stop_where_bf16_holds_the_times(shift, n, slope, offset):
    plain = FlowTimes(shift)
    wanted = torch.tensor(plain.times(n), dtype=torch.float64)
    found = held_times(plain.times(n), slope, offset)
    assert found
    distances = []
    for times in found[:3]:
        exact = torch.tensor(times, dtype=torch.float64)
        told = slope * exact + offset
        assert torch.allclose(halved(told), told, rtol=0, atol=1e-9 * max(1, abs(slope)))
        assert times[0] == 1
        assert all(a > b > 0 for a, b in pairwise(times))
        distances.append(float((exact - wanted).abs().max()))
        handed, *spread = FlowTimes(shift, moved=times).family(stochastic=False).schedulers(n)
        handed.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        assert torch.allclose(handed.timesteps.double(), 1000 * exact, rtol=0, atol=1e-3)
        for scheduler in spread:
            scheduler.set_timesteps(n)
            assert torch.allclose(scheduler.timesteps.double(), 1000 * exact, rtol=0, atol=1e-3)
        assert spread
    assert distances == sorted(distances)
    assert distances[-1] <= REACH


def test_the_nearest_stops_are_those_of_all_pairs():
    """By hand: between 0.9, 0.75 and 0.5 bf16 holds 230/256, 191/256 and 252/512, and 1/u = A + B/i fits them."""
    assert held_times((1.0, 0.9, 0.75, 0.5), 1.0, 0.0)[0] == pytest.approx((1, 230 / 256, 191 / 256, 252 / 512))
    assert held_times((1.0,), 1.0, 0.0) == []


@pytest.mark.parametrize("name", ["flux", "aura_flow"])
def test_a_pipeline_that_rounds_its_times_gets_stops_that_are_not_rounded(name, flux, tmp_path):
    pipeline = flux if name == "flux" else pipeline_of(name)
    for option in ("student.steps=[4]", "student.steps=[1,2]"):
        student = student_of(pipeline, tmp_path, option)
        for schedule in student.schedules:
            for n in schedule.steps:
                exact, told = pipeline.told_in_bf16(schedule.scheduler, n)
                assert told[1:].tolist() == halved(exact).tolist()[1:]
                assert torch.allclose(told, exact, rtol=0, atol=1e-6)
                assert torch.allclose(student.plan.grids[list(student.stops).index(n)], exact, rtol=0, atol=1e-6)


def test_stops_that_cannot_be_held_are_warned_of(flux, tmp_path, caplog):
    student_of(flux, tmp_path, "student.steps=[8]")
    assert re.search(r"half precision tells its network times up to 0\.00\d off, and no 8 stops", caplog.text)


def test_a_pipeline_that_tells_its_times_in_float32_keeps_them(tmp_path, caplog):
    student = student_of(pipeline_of("sd3"), tmp_path, "student.steps=[4]", "student.shift=1.58")
    assert "half precision" not in caplog.text
    assert torch.allclose(student.plan.grids[0], torch.tensor(FlowTimes(1.58).times(4), dtype=torch.float64), atol=1e-6)


def test_a_pipeline_is_in_bf16_for_a_rehearsal_only():
    pipe = FAMILIES["flux"].build()
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    before = [(tensor.dtype, tensor.data_ptr()) for part in parts for tensor in part.state_dict().values()]
    with in_bf16(pipe):
        assert {part.dtype for part in parts} == {torch.bfloat16}
        assert sum(p.numel() for p in pipe.transformer.parameters()) == 0
    assert before == [(tensor.dtype, tensor.data_ptr()) for part in parts for tensor in part.state_dict().values()]


@pytest.mark.parametrize("objective", ["scm", "sana_sprint", "meanflow"])
def test_derivatives_of_a_network_that_rounds_its_times_are_refused_in_half_precision(objective, flux, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN.replace("dmd2, gan: 0", objective))
    with pytest.raises(UserError, match=rf"'{objective}'.*precision=bf16.*FluxPipeline rounds.*derivative_step=0\.03"):
        check_needs(load(tmp_path / "run.yaml", ["train.precision=bf16"]), flux)
    check_needs(load(tmp_path / "run.yaml"), flux)
    check_needs(load(tmp_path / "run.yaml", ["train.precision=bf16", "objective.derivative_step=0.03"]), flux)


def test_derivatives_of_other_networks_are_taken_in_half_precision(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN.replace("dmd2, gan: 0", "scm"))
    check_needs(load(tmp_path / "run.yaml", ["train.precision=bf16"]), pipeline_of("sd3"))
