"""`fastgen init`: a shipped config, or one for a pipeline and a card, by flags or by questions."""

import io
import sys

import pytest
import tiny

from fastgen.cli import main
from fastgen.config.yaml_file import load
from fastgen.distillation import presets


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a pipeline in `mine`, whose counting takes no time."""
    tiny.stable_diffusion().save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow  # plans of several ways, counted: 25 s
def test_a_config_for_a_folder_is_written_counted_and_planned(here, capsys):
    flags = ["--pipeline", "mine", "--memory", "24", "--height", "16", "--width", "16", "--steps", "2,1"]
    assert main(["init", *flags]) == 0
    said = capsys.readouterr().out
    assert "taken, as the fastest that fits: four images at a time, nothing recomputed" in said
    assert "wrote mine_2step.yaml" in said
    assert "next: fastgen train --config mine_2step.yaml --dry-run" in said
    config = load(here / "mine_2step.yaml")
    assert (config.student.steps, config.student.height, config.teacher.path) == ((2, 1), 16, "mine")
    assert config.stages[0].train.micro_batch == 4
    assert not config.stages[0].train.gradient_checkpointing, "a tiny pipeline fits as it is"
    assert main(["plan", "mine_2step.yaml", "--memory", "24"]) == 0
    assert "fits 24 GiB" in capsys.readouterr().out
    assert main(["init", *flags]) == 2
    assert "mine_2step.yaml is already there, and nothing was written" in capsys.readouterr().err


def test_questions_are_asked_on_a_terminal_again_where_an_answer_is_none(here, monkeypatch, capsys):
    wishes = []

    def choose(wish, said):
        wishes.append(wish)
        return presets.Preset(wish, {"out": wish.run}, presets.WAYS[0], forecast=None)

    monkeypatch.setattr(presets, "choose", choose)
    monkeypatch.setattr(presets.Preset, "text", "out: run\n")
    monkeypatch.setattr(sys, "stdin", Terminal("mine\nmuch\n12\nimages\nphotos\n\nspeed\n"))
    assert main(["init"]) == 0
    assert "'much' is no number of GiB above 0" in capsys.readouterr().out
    (wish,) = wishes
    assert (wish.pipeline, wish.memory, str(wish.data), wish.images) == ("mine", 12, "photos", True)
    assert (wish.steps, wish.prefer) == ((4,), "speed")
    assert (here / "mine_4step.yaml").read_text() == "out: run\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there is no terminal to ask on: name a shipped config, or a pipeline"),
        (["--pipeline", "nowhere", "--memory", "24"], "there is no pipeline folder 'nowhere'"),
        (["--pipeline", "mine", "--memory", "24", "a", "b"], "give one FILE, or leave out 'a'"),
        (["sdxl/dmd2_4steps_lora"], "did you mean sdxl/dmd2_4step_lora?"),
    ],
)
def test_a_mistake_is_said_and_nothing_written(here, monkeypatch, capsys, arguments, complaint):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = sorted(here.iterdir())
    assert main(["init", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("steps", ["4,4", "0", "four", ""])
def test_steps_that_are_no_counts_are_refused(here, steps):
    with pytest.raises(SystemExit):
        main(["init", "--pipeline", "mine", "--memory", "24", "--steps", steps])
