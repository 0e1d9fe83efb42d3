"""Targets and stages of trajectory objectives: resumed, one after the other, in half precision."""

import pytest
import small_run
import torch
from trajectory_runs import differ, log, losses, saved, write

from fastgen.cli import main
from fastgen.config import yaml_file as configfile

pytestmark = pytest.mark.usefixtures("verified_here")


def test_a_target_with_embeddings_goes_on_as_if_nothing_had_happened(tmp_path):
    file = write(tmp_path, "classes", "lcm")
    whole, broken = (configfile.load(file, ["train.images=8", f"out={tmp_path / out}"]) for out in ("whole", "broken"))
    assert carried_out(whole) == 0
    assert carried_out(broken, at=(0, 2)) == -9
    assert carried_out(broken, resume=True) == 0
    assert (whole.out / "log.jsonl").read_bytes() == (broken.out / "log.jsonl").read_bytes()
    last, other = (saved(run.out)[-1] for run in (whole, broken))
    for role in ("generator", "target"):
        assert not differ(last[role], other[role])
        assert last[role]["embeddings.embed.w.2.weight"].any(), f"{role}: still as it was born"


def carried_out(config, *, resume=False, at=None):
    """A run in a process of its own, ended before cycle `at`; its exit code."""
    return small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]


ROUNDS = """\
stages:
  - {name: halves, objective: {name: progressive, divided: 2}, train: {images: 4}}
  - {name: last, objective: {name: progressive}, carry: {real_score: ema, generator: ema}, train: {images: 4}}
"""


@pytest.mark.parametrize("kind", ["classes", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_round_of_progressive_distillation_learns_from_the_round_before(kind, tmp_path, capsys):
    file, out = write(tmp_path, kind, "progressive", stages=ROUNDS), tmp_path / "out"
    settings = ["train.ema=0.5", "stages.1.train.optim={lr: 1e-12}"]  # the last round is nearly still
    assert main(["train", "--config", str(file), *settings]) == 0, capsys.readouterr().err
    _, left, begun, _ = saved(out)
    assert "real_score" not in left  # the teacher's own, so that nothing has to be kept of it
    assert differ(left["ema"], left["generator"])
    before = {key.removeprefix("net.").removeprefix("adapter."): value for key, value in left["ema"].items()}
    for role in ("real_score", "generator"):
        now = {key.removeprefix("net.").removeprefix("adapter."): value for key, value in begun[role].items()}
        assert now.keys() == before.keys()
        for key, value in before.items():
            torch.testing.assert_close(now[key], value, rtol=0, atol=1e-9, msg=f"{role} {key}")


TRUNCATED = """\
stages:
  - {name: whole, objective: {name: ct}, train: {images: 4}}
  - {objective: {name: tcm}, carry: {real_score: generator}, train: {images: 4}}
"""


def test_a_truncated_model_agrees_with_the_stage_before(tmp_path, capsys):
    file, out = write(tmp_path, "classes", "ct", stages=TRUNCATED), tmp_path / "out"
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
    _, left, begun, _ = saved(out)
    assert not differ(left["generator"], begun["real_score"])
    assert differ(left["generator"], begun["generator"])
    assert losses(log(out)[-1]).keys() == {"generator/consistency", "generator/boundary"}


def test_in_bf16_the_target_is_kept_in_full_precision(tmp_path, capsys):
    file = write(tmp_path, "classes", "lcm")
    assert main(["train", "--config", str(file), "train.precision=bf16"]) == 0, capsys.readouterr().err
    first, second = saved(tmp_path / "out")
    assert {value.dtype for value in second["target"].values()} == {torch.float32}
    key = next(key for key, value in first["generator"].items() if not torch.equal(value, second["target"][key]))
    torch.testing.assert_close(
        second["target"][key], first["target"][key].lerp(first["generator"][key], 0.05), rtol=1e-6, atol=1e-8
    )
