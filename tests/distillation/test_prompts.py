"""A run encodes the prompts that it draws, and no others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen.config.schema import Config
from fastgen.config.yaml_file import load
from fastgen.data import Loader
from fastgen.distillation.prompts import drawn, in_contexts
from fastgen.seeds import seed_of

MANY = 300


def config_of(folder: Path, **settings: Any) -> Config:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(MANY)), encoding="utf-8")
    base = {
        "out": str(folder / "run"),
        "teacher": {"path": str(folder / "teacher")},
        "data": {"source": "prompts", "path": str(prompts)},
        "log": {"previews": 0},
        "objective": {"name": "dmd2", "gan": 0, "ratio": 2},
        "train": {"images": 16, "batch": 8},
    }
    return load({**base, **settings})


def walked(config: Config, *, turns: int, cycles: int) -> Iterator[str]:
    """The prompts of the batches of a stage, one after the other."""
    loader = Loader(config.data, seed=seed_of(config.seed, "data"))
    for number in range(turns * cycles):
        yield from loader.take(8 * number, 8).prompts


def test_what_is_encoded_is_what_the_stages_draw(tmp_path):
    config = config_of(tmp_path)
    prompts = drawn(config)
    assert sorted(prompts) == sorted(set(walked(config, turns=3, cycles=2)))
    assert len(prompts) == 48 < MANY
    assert list(prompts[2:4]) == [prompts[2], prompts[3]]


def test_a_batch_that_turns_share_is_drawn_once(tmp_path):
    config = config_of(tmp_path, train={"images": 16, "batch": 8, "reuse": True})
    assert sorted(drawn(config)) == sorted(set(walked(config, turns=1, cycles=2)))


def test_a_run_over_several_epochs_draws_all_of_them(tmp_path):
    config = config_of(tmp_path, train={"images": 2 * MANY, "batch": 8})
    assert list(drawn(config)) == list(config.data.prompts)


@pytest.mark.parametrize(
    ("settings", "first"),
    [({"log": {"previews": 1}}, 20), ({"evaluate": {"protocol": "domain", "num": 30}}, 30)],
    ids=["previews", "measurements"],
)
def test_previews_and_measurements_ask_for_the_first_prompts(tmp_path, settings, first):
    config = config_of(tmp_path, **settings)
    assert set(config.data.prompts[:first]) <= set(drawn(config))
    assert set(config.data.prompts[: first + 1]) - set(drawn(config_of(tmp_path))) != set()


def test_pairs_are_drawn_from_a_stream_of_their_own(tmp_path):
    config = config_of(tmp_path, pairs={"count": 5}, objective={"name": "kd"})
    pairs = Loader(config.data, seed=seed_of(config.seed, "pairs")).take(0, 5).prompts
    assert set(pairs) <= set(drawn(config))
    assert not set(pairs) <= set(walked(config, turns=1, cycles=2))


def test_prompts_are_asked_for_in_each_stages_context_too(tmp_path):
    contexts = {what: {"name": "d_opsd", "context": f"{{}} of {what}"} for what in ("clay", "ice")}
    stages = [{"name": name, "objective": kind} for name, kind in {"first": {"name": "cd"}, **contexts}.items()]
    (tmp_path / "prompts.txt").write_text("a fox\n")
    settings = {"out": str(tmp_path), "teacher": {"path": str(tmp_path)}, "train": {"images": 16, "batch": 8}}
    staged = load({**settings, "data": {"source": "prompts", "path": str(tmp_path / "prompts.txt")}, "stages": stages})
    asked = in_contexts(staged, ["a fox", "two"])
    assert list(asked) == ["a fox", "two", "a fox of clay", "two of clay", "a fox of ice", "two of ice"]
    assert list(in_contexts(config_of(tmp_path), ["a fox"])) == ["a fox"]


def test_what_is_asked_in_the_place_of_what_is_forgotten_is_encoded_too(tmp_path):
    forgets = config_of(tmp_path, objective={"name": "sfd", "instead": {"fox": "dog", "red": "green"}})
    asked = in_contexts(forgets, ["a fox", "two", "a red fox"])
    assert list(asked) == ["a fox", "two", "a red fox", "a dog", "a green dog"]


def test_images_alone_have_no_prompts(tmp_path):
    assert list(drawn(config_of(tmp_path, data={"source": "noise", "num_classes": 3}))) == []
