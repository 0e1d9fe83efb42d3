"""From YAML and overrides to a Config, and back: what is read."""

import math
from pathlib import Path

import pytest
from config_texts import PLAIN, STAGED

from fastgen.config.yaml_file import dump, load
from fastgen.objectives.parts.guidance_laws import Fixed

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001", "+1e-4"])
def test_numbers_are_read_as_people_write_them(read, text):
    assert read(PLAIN, f"train.optim.lr={text}").stages[0].train.optim.lr == 1e-4


def test_a_large_count_may_have_an_exponent(read):
    assert read(PLAIN.replace("images: 100", "images: 1E5")).stages[0].train.images == 100_000


@pytest.mark.parametrize("text", ["no", "off", "y", "Yes", "12:30", "0x10", "1_000", "010", "2026-01-01"])
def test_other_words_stay_text(read, text):
    assert read(f"{PLAIN}export: {text}\n").exported == Path(text)


@pytest.mark.parametrize("marks", [b"\xef\xbb\xbf%s", b"%s", b"---\n%s...\n"])
def test_byte_order_marks_and_line_ends_do_not_matter(read, marks):
    assert read(marks % PLAIN.encode()) == read(marks % PLAIN.replace("\n", "\r\n").encode()) == read(PLAIN)


def test_prompts_of_an_override_take_the_place_of_a_files_own():
    """As the shipped configs of prompts say in their first lines."""
    for config in (CONFIGS / "sdxl/dmd2_4step_lora.yaml", CONFIGS / "wan/phased_dmd_4step_lora.yaml"):
        assert load(config, ["data.prompts=mine.txt"]).data.path == Path("mine.txt")


def test_overrides_reach_settings_lists_and_sections_that_are_not_there(read):
    config = read(STAGED, "student.steps=[1, 2]", "stages.1.objective.guidance=1.5", "checkpoints.every=5", "out=a=b")
    assert config.student.steps == (1, 2)
    assert config.stages[1].objective.guidance == Fixed(1.5)
    assert config.stages[0] == read(STAGED).stages[0]
    assert config.checkpoints.every == 5
    assert config.out == Path("a=b")
    assert read(PLAIN + "checkpoints:\n", "checkpoints.every=5") == read(PLAIN, "checkpoints.every=5")


def test_a_stage_changes_what_train_says_for_all(read):
    first, last = (stage.train for stage in read(STAGED).stages)
    assert (first.images, first.batch, first.ema) == (64, 32, 0.9)
    assert (last.images, last.batch, last.ema) == (128, 32, 0.9)
    assert first.optim.betas == (0.5, 0.9)
    assert last.optim.betas == (0.0, 0.99)
    assert first.optim.lr == last.optim.lr == 1e-3
    assert last.optim_of("generator") == last.optim.model_copy(update={"lr": 1e-5})
    assert last.optim_of("fake_score") == last.optim.model_copy(update={"clip": 2.0})


def test_a_single_objective_is_a_list_of_one(read):
    long = PLAIN.replace("objective: {name: dmd2, gan: 0}", "stages: [{name: dmd2, objective: {name: dmd2, gan: 0}}]")
    assert read(long) == read(PLAIN)
    carried = read(PLAIN, "carry.fake_score=teacher", "objective.gan=1", "discriminator.layers=[mid_block]").stages[0]
    assert carried.carry == {"fake_score": "teacher"}
    assert carried.discriminator.layers == ("mid_block",)
    assert [stage.name for stage in read(STAGED).stages] == ["kd", "last"]


def test_numbers_and_words_survive_being_written(read):
    config = read(STAGED, f"stages.1.objective.guidance={math.pi!r}", "export=no", "train.optim.eps=1e-12", "flip=true")
    assert read(dump(config)) == config
    assert config.stages[1].objective.guidance == Fixed(math.pi)
    assert config.exported == Path("no")
