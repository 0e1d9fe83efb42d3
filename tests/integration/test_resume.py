"""A run that is killed, damaged, repeated or breaks down: it goes on bit for bit, or is refused with nothing lost."""

import gc
import json
import os
import shutil
import weakref
from contextlib import contextmanager

import breaking
import pytest
import small_run
import tiny
import torch
from isolated import HERE
from safetensors.torch import load_file

from fastgen.distillation.distil import distil
from fastgen.engine import checkpoint
from fastgen.engine import stage as loop
from fastgen.errors import CheckpointError, NonFiniteError, UserError
from fastgen.manifest import write_manifest

WEIGHTS = "student/unet/diffusion_pytorch_model.safetensors"
KILLS = [(0, 5), (1, 0), (1, 7)]  # (stage, cycle): within kd, at the boundary, within dmd2


pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and `run`, four updates of kd."""
    folder = tmp_path_factory.mktemp("small")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.export.verify.subprocess", HERE)
        distil(short(folder, folder / "run"), recipes=folder)
    return folder


@pytest.fixture
def finished(folder, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return shutil.copytree(folder / "run", tmp_path / "run")


def short(folder, out, *, images=8, optim=None, objective=None, **changes):
    train = {"images": images, "batch": 2, "optim": {"eps": 1e-3, **(optim or {})}}  # smooth: rounding stays rounding
    stages = [{"name": "kd", "objective": objective or {"name": "kd"}, "train": train}]
    return small_run.run_config(
        folder, **{"out": out, "student": {"steps": [1]}, "checkpoints": {"every": 4}, "stages": stages, **changes}
    )


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cycles(run):
    """The (stage, cycle) of each line of a run's log."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(record["stage"], record["cycle"]) for record in records]


def forget(run):
    """Leaves what a run has that was killed before its first checkpoint."""
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "student")


def carried_out(config, *, resume=False, at=None):
    """A run in a process of its own; its exit code."""
    return small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]


def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(folder, tmp_path):
    whole = small_run.run_config(folder, out=tmp_path / "whole")
    broken = small_run.run_config(folder, out=tmp_path / "broken")
    assert carried_out(whole) == 0
    for number, at in enumerate(KILLS):
        assert carried_out(broken, resume=number > 0, at=at) == -9
        assert cycles(broken.out)[-1] == (at if at[1] else (0, 10))
        assert not (broken.out / "student").exists()
    assert carried_out(broken, resume=True) == 0
    assert cycles(whole.out) == [(stage, cycle) for stage in (0, 1) for cycle in range(1, 11)]
    assert (broken.out / "log.jsonl").read_bytes() == (whole.out / "log.jsonl").read_bytes()
    assert (broken.out / WEIGHTS).read_bytes() == (whole.out / WEIGHTS).read_bytes()


def test_a_run_that_is_given_more_images_ends_as_if_it_had_had_them_from_the_start(folder, tmp_path):
    straight, grown = short(folder, tmp_path / "straight", images=16), short(folder, tmp_path / "grown")
    assert carried_out(straight) == 0
    assert carried_out(grown) == 0
    assert cycles(grown.out)[-1] == (0, 4)
    assert carried_out(short(folder, grown.out, images=16), resume=True) == 0
    assert (grown.out / "log.jsonl").read_bytes() == (straight.out / "log.jsonl").read_bytes()
    assert (grown.out / WEIGHTS).read_bytes() == (straight.out / WEIGHTS).read_bytes()


def test_fewer_images_than_are_trained_are_refused(folder, finished):
    before = files(finished)
    with pytest.raises(CheckpointError, match=r"'kd' ends after 8 images, 8 of which are trained.* give at least 8"):
        distil(short(folder, finished, images=4), recipes=folder, resume=True)
    assert files(finished) == before


def test_what_a_checkpoint_holds_is_read_one_group_at_a_time_and_not_kept(folder, finished, monkeypatch):
    read, cycle, seen = checkpoint.load_file, loop.Stage.cycle, []

    def alive():
        gc.collect()
        return {name for name, tensor in seen if tensor() is not None}

    def watched(file):
        assert not alive(), f"{alive()} are kept while {file.name} is read"
        tensors = read(file)
        seen.extend((file.name, weakref.ref(tensor)) for tensor in tensors.values())
        return tensors

    def cycle_after_all_is_let_go(stage):
        assert seen
        assert not alive(), f"{alive()} are kept while the run goes on"
        return cycle(stage)

    shutil.rmtree(finished / "checkpoints" / "00000008")
    monkeypatch.setattr(checkpoint, "load_file", watched)
    monkeypatch.setattr(loop.Stage, "cycle", cycle_after_all_is_let_go)
    distil(short(folder, finished), recipes=folder, resume=True)
    assert cycles(finished)[-1] == (0, 4)
    groups = ("generator", "optimizer.generator", "ema", "guard")
    assert {name for name, _ in seen} == {f"{group}.safetensors" for group in groups}


def test_changed_settings_are_refused_by_name(folder, finished):
    before = files(finished)
    with pytest.raises(CheckpointError, match=r"stages\.0\.train\.optim\.lr was 0\.0001, is 0\.5.*out="):
        distil(short(folder, finished, optim={"lr": 0.5}), recipes=folder, resume=True)
    with pytest.raises(CheckpointError, match=r"seed was 0, is 7"):
        distil(short(folder, finished, seed=7), recipes=folder, resume=True)
    assert files(finished) == before


@contextmanager
def flipped(file, place=-1):
    """Within, a bit of the file is another."""
    content, times = file.read_bytes(), file.stat()
    spoilt = bytearray(content)
    spoilt[place] ^= 1
    file.write_bytes(spoilt)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    yield
    file.write_bytes(content)


def test_other_weights_of_the_teacher_are_refused_by_name_unless_allowed(folder, finished):
    before, weights = files(finished), folder / "teacher/unet/diffusion_pytorch_model.safetensors"
    with flipped(weights):
        with pytest.raises(CheckpointError, match=r"contents of the teacher: unet/diffusion.*--allow-changed teacher"):
            distil(short(folder, finished), recipes=folder, resume=True)
        assert files(finished) == before
        shutil.rmtree(finished / "checkpoints" / "00000008")
        distil(short(folder, finished), recipes=folder, resume=True, allow_changed=["teacher"])
        assert cycles(finished)[-1] == (0, 4)
    with pytest.raises(CheckpointError, match="contents of the teacher"):
        distil(short(folder, finished), recipes=folder, resume=True)


def test_pairs_that_are_damaged_or_others_are_refused_by_name(folder, finished):
    pairs = finished / "pairs" / "pairs.safetensors"
    with (
        flipped(pairs),
        pytest.raises(
            CheckpointError, match=r"pairs\.safetensors has its .* sha256.*delete .*pairs, and they are made"
        ),
    ):
        distil(short(folder, finished), recipes=folder, resume=True)
    with flipped(pairs):
        write_manifest(pairs.parent)
        with pytest.raises(CheckpointError, match=r"contents of the pairs: sha256 is .*--allow-changed pairs"):
            distil(short(folder, finished), recipes=folder, resume=True)


def test_settings_that_change_no_number_may_change(folder, finished):
    distil(short(folder, finished, checkpoints={"keep": 1}), recipes=folder, resume=True)
    assert (finished / WEIGHTS).read_bytes() == (folder / "run" / WEIGHTS).read_bytes()


def test_a_damaged_checkpoint_is_skipped_with_a_message(folder, finished, capsys):
    older, newest = sorted((finished / "checkpoints").iterdir())
    weights = newest / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    distil(short(folder, finished), recipes=folder, resume=True)
    said = capsys.readouterr().err
    assert f"skipped a damaged checkpoint and resume from {older}" in said
    assert str(weights) in said
    assert cycles(finished) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_folder_with_a_run_is_not_written_into(folder, finished):
    before = files(finished)
    with pytest.raises(UserError, match=r"already holds a run: go on with it by --resume"):
        distil(short(folder, finished), recipes=folder)
    assert files(finished) == before


def test_what_a_run_without_checkpoint_left_is_replaced(folder, finished):
    forget(finished)
    distil(short(folder, finished), recipes=folder)
    assert cycles(finished) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_student_whose_checkpoints_are_gone_is_not_replaced(folder, finished):
    shutil.rmtree(finished / "checkpoints")
    before = files(finished)
    with pytest.raises(UserError, match=r"student, which already holds .*, and no checkpoint is left"):
        distil(short(folder, finished), recipes=folder, resume=True)
    assert files(finished) == before


def test_resuming_nothing_starts_from_the_beginning(folder, tmp_path, capsys):
    distil(short(folder, tmp_path / "new"), recipes=folder, resume=True)
    assert f"nothing to resume in {tmp_path / 'new'}" in capsys.readouterr().err
    assert cycles(tmp_path / "new") == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_breakdown_leaves_the_last_checkpoint(folder, tmp_path):
    spoilt = short(folder, tmp_path / "run", objective=breaking.Spoilt(cycles=(3,)))
    with pytest.raises(NonFiniteError, match=r"generator/regression is nan.* in cycle 3 of stage 'kd'"):
        distil(spoilt, recipes=folder)
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert left.name == "00000004"
    sound = folder / "run" / "checkpoints" / left.name
    assert files(left).keys() == files(sound).keys()
    for file in left.glob("*.safetensors"):  # another run's, whose networks lie elsewhere and may round otherwise
        torch.testing.assert_close(load_file(file), load_file(sound / file.name), rtol=1e-4, atol=1e-6)
    assert not (tmp_path / "run" / "student").exists()


def test_pairs_are_kept_for_the_same_data_and_made_anew_for_other(folder, finished):
    pairs = finished / "pairs" / "pairs.safetensors"
    made = pairs.stat().st_mtime_ns
    forget(finished)
    distil(short(folder, finished), recipes=folder)
    assert pairs.stat().st_mtime_ns == made
    forget(finished)
    distil(short(folder, finished, data={"source": "noise", "num_classes": 10}), recipes=folder)
    assert pairs.stat().st_mtime_ns != made
