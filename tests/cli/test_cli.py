"""The shell around the commands: help, exit codes, and mistakes without stack traces."""

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastgen.cli import COMMANDS, main
from fastgen.errors import LOG, UserError, say, warn

ROOT = Path(__file__).parents[2]


def test_help_and_the_list_of_configs_need_no_torch_and_half_a_second():
    code = (
        "import sys, time; start = time.process_time(); from fastgen.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.process_time() - start)"
    )
    help_of = ([name, "--help"] for name in ("sample", "prove", "list", "init"))
    for arguments in (["--help"], *help_of, ["list", "configs"]):
        command = [sys.executable, "-c", code, *arguments]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
        assert min(float(run.stdout.split()[-1]) for run in runs) < 0.5
        assert ("digits/dmd2_1step" if "configs" in arguments else "usage: fastgen") in runs[0].stdout


def test_a_bar_of_what_is_over_at_once_is_not_shown():
    """Diffusers and transformers show one of every pipeline that they load, however small it is."""
    code = "from fastgen.cli import main; main(['--version']); from tqdm import tqdm; print(list(tqdm(range(3))))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.endswith("[0, 1, 2]\n")
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("name", "arguments"), [("sample", ["nowhere/at/all", "--num", "0"]), ("train", ["--num", "0"])]
)
def test_the_scripts_are_the_commands(name, arguments):
    failed = subprocess.run([sys.executable, f"{name}.py", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 2
    assert f"fastgen {name}: error: " in failed.stderr
    assert "Traceback" not in failed.stderr


def test_commands(monkeypatch, capsys):
    assert main(["smaple"]) == 2
    assert "did you mean sample?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert f"known: {', '.join(COMMANDS)}" in capsys.readouterr().err
    assert main([]) == 0
    assert "usage: fastgen COMMAND" in capsys.readouterr().out

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastgen.cli.sample.run", interrupt)
    assert main(["sample", "anything"]) == 130


def test_what_the_library_says_is_shown_by_commands_alone(monkeypatch, capsys, caplog):
    def speak(_):
        say("done")
        warn("unwise")

    monkeypatch.setattr("fastgen.cli.sample.run", speak)
    before = (LOG.level, LOG.propagate, list(LOG.handlers))
    assert main(["sample", "anything"]) == 0
    assert tuple(capsys.readouterr()) == ("done\n", "fastgen: warning: unwise\n")
    assert (LOG.level, LOG.propagate, list(LOG.handlers)) == before
    warn("unwise again")
    assert tuple(capsys.readouterr()) == ("", "")
    assert caplog.messages == ["unwise again"]


def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from fastgen.cli import main; sys.exit(main(['list', 'configs']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_debug_shows_the_stack_and_a_full_disk_does_not(monkeypatch, capsys):
    with pytest.raises(UserError):
        main(["sample", "nowhere/at/all", "--debug"])

    def full(_):
        raise OSError(28, "No space left on device", "samples/00000.png")

    monkeypatch.setattr("fastgen.cli.sample.run", full)
    assert main(["sample", "anything"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_eval_brings_its_own_parser(monkeypatch):
    def build_parser():
        parser = ArgumentParser(prog="python -m eval")
        parser.add_argument("--student")
        return parser

    ran = []
    fake = SimpleNamespace(build_parser=build_parser, run=ran.append)
    monkeypatch.setitem(sys.modules, "eval.cli", fake)
    assert main(["eval", "--student", "here"]) == 0
    assert [options.student for options in ran] == ["here"]


@pytest.mark.parametrize("command", ["train", "plan", "precompute"])
def test_settings_are_read_before_and_after_other_options(command, monkeypatch):
    ran = []
    monkeypatch.setattr(f"fastgen.cli.{command}.run", ran.append)
    config = ["--config", "here.yaml"] if command == "train" else ["here.yaml"]
    assert main([command, *config, "data.size=32", "--debug", "out=there"]) == 0
    assert [options.overrides for options in ran] == [["data.size=32", "out=there"]]


@pytest.mark.parametrize("command", ["plan", "precompute"])
def test_settings_that_may_be_left_out_are_not_asked_for(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main([command])
    assert capsys.readouterr().err.endswith("the following arguments are required: CONFIG\n")


@pytest.mark.parametrize("words", [["init", "digits/dmd2_1step"], ["plan"], ["verify"], ["watch"], ["sample", "--out"]])
@pytest.mark.parametrize("name", ["\ud83d", "a\0b"])
def test_what_no_file_can_be_called_is_refused(words: list[str], name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as left:
        main([*words, name])
    assert left.value.code == 2
    assert "is no name that a file can have" in capsys.readouterr().err
