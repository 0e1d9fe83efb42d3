"""Every phase and every signal: the exit code, the way on, and the seconds until the process is gone."""

import signal
import time

import pytest
import small_run
import tiny
import told

from fastgen.stopping import SIGNALS

pytestmark = pytest.mark.slow  # a run for each: a minute and more
SAVES = {"step": 4, "save": 6, "preview": 6}  # images in the checkpoint that a signal leaves
COMMANDS = {
    "sample": ("fastgen.sampling.gallery:_write", ["sample", "{folder}/teacher", "--num", "4", "--out", "{folder}/s"]),
    "eval": (
        "eval.evaluate:_reference",
        ["eval", "--protocol", "digits", "--student", "{folder}/teacher", "--out", "{folder}/e", "--allow-small"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    tiny.class_conditional(size=8, channels=1).save_pretrained(folder / "teacher")
    return folder


def ended(target, *arguments, place, number):
    """The exit code of a process that was told, the seconds since, and what it said."""
    code = small_run.in_processes(1, target, *arguments)[0]
    seconds = time.time() - float(place.read_text())
    print(f"{place.name} {signal.Signals(number).name} {code} {seconds:.1f} s")
    return code, seconds, place.with_suffix(".said").read_text()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", told.PHASES)
def test_a_run_that_is_told_ends_soon_and_says_how_it_goes_on(folder, phase, number):
    name = f"{phase.replace(' ', '-')}-{number}"
    stages = [{"objective": {"name": "kd"}, "train": {"images": 6, "batch": 2}}]
    config = small_run.run_config(
        folder,
        out=folder / f"run-{name}",
        student={"steps": [1]},
        stages=stages,
        checkpoints={"every": 100},
        log={"previews": 1, "trackers": []},
    )
    place = folder / name
    code, seconds, said = ended(told.told, phase, number, config, place, place=place, number=number)
    assert code == 128 + number
    assert seconds < 30
    assert f"fastgen: stopped by {signal.Signals(number).name}" in said
    assert said.rstrip().endswith("--resume")
    assert "Traceback" not in said
    steps = [int(path.name) for path in (config.out / "checkpoints").glob("*")]
    late = list(told.PHASES).index(phase) > list(told.PHASES).index("step")
    assert max(steps, default=0) == SAVES.get(phase, 6 if late else 0)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_told_ends_soon_and_says_how_it_goes_on(folder, command, number):
    where, arguments = COMMANDS[command]
    place = folder / f"{command}-{number}"
    words = [word.format(folder=folder) for word in arguments]
    code, seconds, said = ended(told.told_command, where, number, words, place, place=place, number=number)
    assert code == 128 + number
    assert seconds < 30
    assert said.rstrip().endswith("--overwrite")
    assert "Traceback" not in said
