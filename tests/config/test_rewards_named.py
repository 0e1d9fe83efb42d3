"""What a stage's samples are rewarded for: named, weighed, and refused where nobody reads it."""

from pathlib import Path

import pytest
import torch

from fastgen.config.yaml_file import dump, fingerprint, load, save
from fastgen.errors import UserError
from fastgen.models.pipelines.clip_reward import ClipReward
from fastgen.models.pipelines.codec import PixelCodec
from fastgen.models.pipelines.rewards import Weighted, loaded

RUN = """\
out: runs/x
teacher: {path: teachers/x}
data: {source: noise}
train: {images: 100}
"""
LIGHT = '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Light:
    """How light pictures are."""

    gain: float = 1.0

    def load(self, device):
        return lambda images, asked: self.gain * images.mean((1, 2, 3))
'''


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "light.py").write_text(LIGHT)
    file = tmp_path / "run.yaml"
    file.write_text(f"{RUN}objective: {{name: advantage_flow}}\nrewards: {{name: clip, path: model}}\n")
    return file


def test_one_reward_needs_no_weight_and_several_have_theirs(run: Path):
    assert load(run).stages[0].rewards == Weighted((ClipReward("model"),), (1.0,))
    weighed = load(run, ["rewards.weight=3"]).stages[0].rewards
    assert weighed == Weighted((ClipReward("model"),), (3.0,)), "one may have a weight, as one of several has"
    several = "rewards=[{name: clip, path: a, weight: 3}, {name: 'light.py:Light', gain: 2}]"
    config = load(run, [several, "judges={name: clip, path: b}"])
    (stage,) = config.stages
    assert stage.rewards.weights == (3.0, 1.0)
    assert stage.rewards.parts[1].gain == 2.0
    assert stage.judges == Weighted((ClipReward("b"),), (1.0,))


def test_it_survives_being_written_with_the_users_code(run: Path, tmp_path: Path):
    config = load(run, ["rewards=[{name: clip, path: a, weight: 3}, {name: 'light.py:Light', gain: 2}]"])
    assert load_text(dump(config), tmp_path) == config
    save(config, tmp_path / "kept")
    kept = load(tmp_path / "kept/config.yaml")
    assert kept.stages[0].rewards.parts[1].gain == 2.0
    assert fingerprint(kept) == fingerprint(config)
    (tmp_path / "light.py").write_text(LIGHT.replace("self.gain *", "self.gain +"))
    other = load(run, ["rewards=[{name: clip, path: a, weight: 3}, {name: 'light.py:Light', gain: 2}]"])
    assert fingerprint(other) != fingerprint(config), "other code is another run"


def load_text(text: str, folder: Path) -> object:
    (folder / "written.yaml").write_text(text)
    return load(folder / "written.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rewards=null"], "advantage_flow trains by rewards and the stage has none: set rewards"),
        (["objective={name: vsd}"], "vsd reads no rewards: remove rewards and judges"),
        (["objective={name: vsd}", "rewards=null", "judges={name: clip, path: a}"], "vsd reads no rewards"),
        (["rewards={name: clop, path: a}"], "there is no reward 'clop'; did you mean clip"),
        (["rewards=[]"], "at least one"),
        (["rewards=[{name: clip, path: a, weight: 0}]"], "weight is 0: give a number above 0"),
        (["rewards.weight=-1"], "weight is -1: give a number above 0"),
        (["rewards={name: clip}"], "path"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Path, overrides: list[str], words: str):
    with pytest.raises(UserError, match=words):
        load(run, overrides)


def test_figures_of_the_same_name_are_told_apart(run: Path):
    light = "{name: 'light.py:Light', gain: 2}"
    (stage,) = load(run, [f"rewards=[{light}, {light}]", f"judges={light}"]).stages
    rewards = loaded(stage.rewards, stage.judges, PixelCodec(), torch.device("cpu"))
    rewards(torch.ones(1, 3, 2, 2), ())
    assert {name: float(value) for name, value in rewards.figures.items()} == {"Light_1": 2, "Light_2": 2, "Light": 2}
