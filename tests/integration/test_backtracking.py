"""DisBack as stages: every role starts from what its stage says, also in a run that was ended and resumed.

That roles are given what a stage names is in `tests/engine/test_origins.py`.
"""

import pytest
import small_run
import torch
from safetensors.torch import load_file
from trajectory_runs import differ, log, saved, write

from fastgen.config import yaml_file as configfile

pytestmark = pytest.mark.usefixtures("verified_here")
STAGES = """\
stages:
  - {name: half, objective: {name: degradation}, train: {ema: 0.5}}
  - {name: whole, objective: {name: degradation}}
  - name: back
    objective: {name: dmd2, gan: 0, ratio: 1}
    carry: {generator: teacher, real_score: half, fake_score: whole}
  - {name: home, objective: {name: sid, ratio: 1}, carry: {fake_score: fake_score}}
"""
STILL = ["stages.2.train.optim={lr: 1e-12}", "stages.3.train.optim={lr: 1e-12}", "student.steps=[1]"]


def carried_out(config, *, resume=False, at=None):
    """A run in a process of its own, ended before cycle `at`; its exit code."""
    return small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]


def own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("net.").removeprefix("adapter."): value for key, value in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert own(one).keys() == own(other).keys()
    for key, value in own(one).items():
        torch.testing.assert_close(value, own(other)[key], rtol=0, atol=1e-9, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ended"), [("classes", True), ("sd3", False)])
def test_there_and_back_again(kind: str, ended: bool, tmp_path):
    file = write(tmp_path, kind, "kd", stages=STAGES)
    config = configfile.load(file, STILL)
    if ended:
        assert carried_out(config, at=(1, 1)) == -9
    assert carried_out(config, resume=ended) == 0
    left = {
        name: load_file(tmp_path / f"out/stages/{name}/generator.safetensors") for name in ("half", "whole", "back")
    }
    assert differ(left["half"], left["whole"])
    _, back, _, home = [kept for kept in saved(config.out) if "fake_score" in kept]
    same(back["real_score"], left["half"])
    same(back["fake_score"], left["whole"])
    assert differ(own(back["generator"]), own(back["real_score"]))
    assert "real_score" not in home, "the teacher's own"
    same(home["fake_score"], back["fake_score"])
    assert {"generator/dm", "generator/sid"} <= {key for line in log(config.out) for key in line}
