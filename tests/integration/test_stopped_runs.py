"""A run that a signal stops: everything is in a checkpoint, and who goes on ends as if nothing had happened."""

import json
import os
import shlex
import signal
from argparse import Namespace

import pytest
import small_run
import tiny
from isolated import HERE

from fastgen.command import guarded
from fastgen.config.export import ExportConfig
from fastgen.distillation.distil import distil
from fastgen.engine import stage as loop
from fastgen.engine.previews import Previews
from fastgen.engine.quality import Yardstick
from fastgen.engine.telling import Telling
from fastgen.errors import UserError
from fastgen.lock import held

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and `whole`, a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.export.verify.subprocess", HERE)
        measured(patch)
        distil(config(folder, "whole"), recipes=folder)
    return folder


def config(folder, out):
    """Four cycles of kd, measured after the second and the last, saved at the end."""
    stages = [{"name": "kd", "objective": {"name": "kd"}, "train": {"images": 8, "batch": 2}}]
    evaluate = {"protocol": "digits", "every": 4}
    return small_run.run_config(
        folder,
        out=folder / out,
        student={"steps": [1]},
        stages=stages,
        checkpoints={"every": 100},
        evaluate=evaluate,
        log={"every": 1, "previews": 2, "trackers": []},
    )


def measured(patch, during=lambda stage: None):
    """Runs are measured by a number of their own, during which something may happen."""

    def look(stage):
        during(stage)
        return stage.position.images

    def figures(parts):
        return {"fid": 1 / (1 + parts[0])}

    class Monitor:
        yardstick = Yardstick(look, figures, "fid", abs)

        def report(self, trained): ...

    patch.setattr("fastgen.distillation.distil._monitor", lambda student, here: Monitor())


def tell():
    os.kill(os.getpid(), signal.SIGTERM)


def during(name, at):
    """A patch by which a method of a stage, its pictures or its telling is told to stop when it begins, at a cycle."""

    def patched(patch):
        kind = next(kind for kind in (loop.Stage, Previews, Telling) if hasattr(kind, name))
        original = getattr(kind, name)

        def told(self, *arguments, **named):
            stage = self if kind is loop.Stage else getattr(self, "_stage", None) or arguments[0]
            if stage.position.cycle == at:
                tell()
            return original(self, *arguments, **named)

        patch.setattr(kind, name, told)

    return patched


def in_measuring(patch):
    measured(patch, lambda stage: tell() if stage.position.cycle == 2 else None)


PHASES = {  # where a run is told to stop, each going on from the one before -> cycles in its checkpoint, lines logged
    "before any work": (during("cycle", 0), 0, 0),
    "step": (during("cycle", 1), 2, 1),
    "measurement": (in_measuring, 2, 1),
    "preview": (during("draw", 2), 3, 2),
    "log": (during("report", 3), 4, 3),
}


def carried_out(settings, *, resume):
    options = Namespace(debug=False)
    return guarded(
        lambda _: distil(settings, recipes=settings.out.parent, resume=resume) and 0, options, goes_on="--resume"
    )


def torn_off(monkeypatch, run):
    """Goes on, and breaks down where what was due is done and nothing else."""
    with monkeypatch.context() as patch:
        measured(patch)
        patch.setattr(loop.Stage, "cycle", lambda stage: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carried_out(run, resume=True)
    assert json.loads(lines(run.out)[-1])["cycle"] == 2


def lines(run):
    return (run / "log.jsonl").read_text().splitlines()


def test_a_run_that_is_stopped_in_every_phase_ends_as_if_nothing_had_happened(folder, monkeypatch, capsys):
    run = config(folder, "stopped")
    for number, (phase, (told, cycles, logged)) in enumerate(PHASES.items()):
        with monkeypatch.context() as patch:
            measured(patch)
            told(patch)
            assert carried_out(run, resume=number > 0) == 143, phase
        said = capsys.readouterr().err
        kept = f": saved at {2 * cycles} images of stage 'kd'" if cycles else ""
        assert f"fastgen: stopped by SIGTERM{kept}; go on with" in said, phase
        assert shlex.split(said.splitlines()[-1])[-1] == "--resume"
        newest = max([int(path.name) for path in (run.out / "checkpoints").glob("*")], default=0)
        assert newest == 2 * cycles, phase
        assert len([line for line in lines(run.out) if json.loads(line)["cycle"]]) == logged, phase
        if phase == "measurement":
            torn_off(monkeypatch, run)
    measured(monkeypatch)
    assert carried_out(run, resume=True) == 0
    assert lines(run.out) == lines(folder / "whole")
    for weights in ("student/unet/diffusion_pytorch_model.safetensors", "best/generator.safetensors"):
        assert (run.out / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def test_what_cannot_be_saved_after_a_signal_is_said(folder, monkeypatch, capsys):
    measured(monkeypatch)
    during("cycle", 1)(monkeypatch)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastgen.engine.checkpoint._require_space", full)
    assert carried_out(config(folder, "full"), resume=False) == 3
    assert "could not be written: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_or_export_is_refused_before_its_teacher_is_loaded(folder, monkeypatch):
    run = config(folder, "locked")
    monkeypatch.setattr("fastgen.distillation.distil.teacher_of", lambda *_: pytest.fail("it was loaded"))
    exported = folder / "elsewhere" / "student"
    with held({run.out: run.out / ".lock", exported: exported.with_name(".student.lock")}):
        (run.out / "checkpoints").mkdir()
        for other in (run, config(folder, "another").model_copy(update={"export": ExportConfig(path=exported)})):
            with pytest.raises(UserError, match=f"is being written by another run .process {os.getpid()} on"):
                distil(other, recipes=folder)
