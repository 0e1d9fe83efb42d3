"""Runs whose student has a coach: what an earlier stage or `init` left, which stays as it is."""

import pytest
import small_run
import torch
from trajectory_runs import differ, log, losses, saved, write

from fastgen.cli import main
from fastgen.config import yaml_file as configfile

pytestmark = pytest.mark.usefixtures("verified_here")

STAGES = """\
stages:
  - {name: few, objective: {name: kd}, train: {images: 4, ema: 0.5}}
  - {objective: {name: k_dmd, ratio: 1}, carry: {coach: ema, generator: teacher}, train: {images: 4}}
"""
ALONE = "stages: [{objective: {name: k_dmd, ratio: 1}, carry: {coach: generator, generator: teacher}}]"


def own(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("net.").removeprefix("adapter."): value for key, value in weights.items()}


@pytest.mark.parametrize("kind", ["classes", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_coach_is_what_a_stage_before_left_and_stays_so(kind, tmp_path, capsys):
    file, out = write(tmp_path, kind, "kd", stages=STAGES), tmp_path / "out"
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
    _, left, begun, ended = saved(out)
    for then in (begun, ended):
        assert own(then["coach"]).keys() == own(left["ema"]).keys()
        for key, value in own(left["ema"]).items():
            assert torch.equal(own(then["coach"])[key], value), key
    for role in ("generator", "fake_score"):
        assert differ(begun[role], ended[role])
    assert losses(log(out)[-1]).keys() == {"generator/dm", "generator/knowledge", "fake_score/denoise"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "sd3"])
def test_beside_a_coach_a_run_goes_on_as_if_nothing_had_happened(kind, tmp_path):
    file = write(tmp_path, kind, "kd", stages=STAGES)
    more = ["stages.1.train.images=10", "stages.1.train.ema=0.5"]
    whole, broken = (configfile.load(file, [*more, f"out={tmp_path / out}"]) for out in ("whole", "broken"))
    codes = [
        small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]
        for config, resume, at in ((whole, False, None), (broken, False, (1, 3)), (broken, True, None))
    ]
    assert codes == [0, -9, 0]
    assert (whole.out / "log.jsonl").read_bytes() == (broken.out / "log.jsonl").read_bytes()
    for one, other in zip(saved(whole.out), saved(broken.out), strict=True):
        assert one.keys() == other.keys() >= {"generator"}
        for role, weights in one.items():
            assert all(torch.equal(value, other[role][key]) for key, value in weights.items()), role
    assert "coach" in other


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "sd3"])
def test_a_student_that_is_there_already_is_a_coach_by_init(kind, tmp_path, capsys):
    file, first = write(tmp_path, kind, "kd"), tmp_path / "first"
    assert main(["train", "--config", str(file), f"out={first}"]) == 0, capsys.readouterr().err
    file.write_text(file.read_text().replace("objective: {name: kd}", ALONE))
    assert main(["train", "--config", str(file), f"init={first}"]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
    begun, _ = saved(tmp_path / "out")
    left = saved(first)[-1]["generator"]
    assert not differ(own(left), own(begun["coach"]))
    assert differ(own(left), own(begun["generator"]))
