"""Every phase and every signal: the exit code, the way on, and the seconds until the process is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import tiny
import told

from fastgen.config.yaml_file import dump
from fastgen.stopping import SIGNALS

pytestmark = pytest.mark.slow  # a run for each: a minute and more
SAVES = {"step": 4, "save": 6, "preview": 6}  # images in the checkpoint that a signal leaves
SUPPORT = Path(told.__file__).parent
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
    tiny.dit(layers=4).save_pretrained(folder / "blocks")
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
    compiles = phase == "compiling"
    stages = [{"objective": {"name": "kd"}, "train": {"images": 6, "batch": 2, "compile": compiles}}]
    blocks = {"teacher": {"path": str(folder / "blocks")}, "data": {"source": "noise", "num_classes": 1000}}
    config = small_run.run_config(
        folder,
        out=folder / f"run-{name}",
        student={"steps": [1]},
        stages=stages,
        checkpoints={"every": 100},
        log={"previews": 1, "trackers": []},
        cache=folder / f"cache-{name}",
        **(blocks if compiles else {}),
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
@pytest.mark.parametrize("module", ["torch", "diffusers"])
def test_a_run_that_is_told_while_it_imports_ends_soon_and_says_how_it_goes_on(folder, module, number):
    place = folder / f"import-{module}-{number}"
    config = small_run.run_config(folder, out=folder / f"run-{place.name}")
    place.with_suffix(".yaml").write_text(dump(config))
    words = [sys.executable, SUPPORT / "told_importing.py", module, str(int(number)), place]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, env=paths, check=False)
    seconds = time.time() - float(place.read_text())
    print(f"{place.name} {signal.Signals(number).name} {done.returncode} {seconds:.1f} s")
    assert done.returncode == 128 + number
    assert seconds < 30
    assert f"fastgen: stopped by {signal.Signals(number).name}" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not config.out.exists()


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
