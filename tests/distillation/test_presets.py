"""Configs for a pipeline and a card: the first way that fits, and a plan that bears it out."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fastgen.config.yaml_file import load
from fastgen.distillation import presets
from fastgen.distillation.checks import check_stages
from fastgen.distillation.costs import forecast_of
from fastgen.distillation.presets import WAYS, Wish, choose, shorter
from fastgen.errors import UserError
from fastgen.models.pipelines.published import PUBLISHED
from fastgen.planning.cards import GIB
from fastgen.planning.forecast import Forecast, TurnCost
from fastgen.planning.held import Part
from fastgen.planning.meter import Tally

CARDS = (12, 16, 24, 48, 80)
VIDEO = {"height": 480, "width": 832, "frames": 81}


def counted(config, *_, **__) -> Forecast:
    """40 GiB stored, a fifth less with each way after it; a video takes as much more as it is longer."""
    train, student = config.stages[0].train, config.student
    way = next(
        place
        for place, way in enumerate(WAYS)
        if (way.rank, way.memory, way.train.get("gradient_checkpointing", False), way.train["micro_batch"])
        == (config.lora.rank, config.memory, train.gradient_checkpointing, train.micro_batch)
    )
    gib = 40 * 0.8**way * (student.frames or 81) / 81
    turn = TurnCost(("generator",), Tally(), peak=0, made=0, gradients=0)
    return Forecast((Part("all", int(gib * GIB)),), (turn,), cycles=1, rows=1, recorded=False)


@pytest.fixture
def made_up(monkeypatch):
    """Pipelines that need no probing: a flow, guided by 4, which hands no generator on."""
    monkeypatch.setattr(presets, "forecast_of", counted)
    size = {"height": 64, "width": 64}
    told = presets._Told(flow=True, guidance=4.0, generator=False, size=size)
    monkeypatch.setattr(presets, "_told", lambda wish: replace(told, size={**size, **wish.size}))


@pytest.mark.parametrize(("memory", "way"), [(80, 0), (43.5, 0), (42.5, 1), (24, 3), (18, 4)])
def test_the_first_way_that_fits_is_chosen(made_up, memory, way):
    assert choose(Wish("mine", memory)).way is WAYS[way]


def test_a_video_is_cut_only_where_nothing_else_fits(made_up):
    assert choose(Wish("mine", 18, size=VIDEO)).settings["student"]["frames"] == 81
    assert choose(Wish("mine", 12, size=VIDEO)).settings["student"]["frames"] == 49
    with pytest.raises(UserError, match=r"does not fit a card of 2 GB: .* needs 3.5 GiB, .* PyTorch can have 1.9"):
        choose(Wish("mine", 2, size=VIDEO))


def test_frames_are_one_more_than_a_multiple_of_eight():
    assert [shorter(81, share) for share in (1.0, 0.6, 0.4, 0.2)] == [81, 49, 33, 17]
    assert shorter(5, 0.2) == 9


@pytest.mark.parametrize("prefer", ["quality", "speed"])
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("steps", [(1,), (4, 2)])
def test_what_is_written_is_what_was_chosen_and_can_be_trained(made_up, tmp_path, prefer, images, steps):
    wish = Wish("me/mine", 24, data=Path("all/mine"), images=images, steps=steps, prefer=prefer)
    preset = choose(wish)
    (tmp_path / "run.yaml").write_text(preset.text)
    assert yaml.safe_load(preset.text).keys() == preset.settings.keys()
    config = load(tmp_path / "run.yaml")
    assert config == load(preset.settings)
    check_stages(config)
    assert config.student.sampler == ("renoise" if steps == (1,) else "ode"), "no generator reaches its scheduler"
    assert config.stages[0].objective.needs.images == images
    assert all(line.startswith("#") for line in preset.text.splitlines()[:3])
    assert "card of 24 GB" in preset.text


def test_a_name_stands_for_a_hub_id_and_a_folder_for_itself():
    assert Wish("sdxl", 24).teacher == "stabilityai/stable-diffusion-xl-base-1.0"
    assert Wish("stabilityai/stable-diffusion-xl-base-1.0", 24).name == "sdxl"
    assert Wish("../models/mine", 24).run == "runs/mine_4step"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_known_pipeline_has_a_config_for_every_card_that_its_plan_fits(name, tmp_path, monkeypatch):
    found, count = {}, presets.forecast_of

    def once(config, *args, **kwargs):
        key = config.model_dump_json(include={"memory", "lora", "student", "stages"})
        found[key] = found.get(key) or count(config, *args, **kwargs)
        return found[key]

    monkeypatch.setattr(presets, "forecast_of", once)
    for memory in CARDS:
        wish = Wish(name, memory)
        if name == "qwen_image" and memory < 24:  # its text encoder alone has 15.4 GiB
            with pytest.raises(UserError, match="of which its text encoders 1"):
                choose(wish)
            continue
        preset = choose(wish)
        file = tmp_path / f"{memory}.yaml"
        file.write_text(preset.text)
        config = load(file)
        check_stages(config)
        needs = wish.card.needs(forecast_of(config, 0, card=wish.card, recipes=tmp_path))
        assert needs <= 0.95 * memory * GIB
        print(f"{name} {memory} GB: {preset.way.said}, {preset.settings['student']}, {needs / GIB:.1f} GiB")
