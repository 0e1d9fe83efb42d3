"""Pictures that no teacher draws are said to be what they are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastgen.data import Items
from fastgen.distillation.collapse import alarms, health_of
from fastgen.distillation.previews import Gallery

DRAWN = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def zeroed() -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("pictures", "generator", "said"),
    [
        (DRAWN, nn.Linear(2, 2), ""),
        (DRAWN, zeroed(), "all weights of the generator are zero"),
        (DRAWN[:1].expand(6, -1, -1, -1) + 1e-4 * DRAWN, nn.Linear(2, 2), "6 pictures of different seeds are equal"),
        (torch.linspace(-0.5, 0.5, 6).reshape(6, 1, 1, 1).expand(6, 3, 8, 8), nn.Linear(2, 2), "has one colour"),
        (DRAWN.sign(), nn.Linear(2, 2), "100% of its pictures' values are at the ends"),
        (DRAWN * torch.nan, nn.Linear(2, 2), "its pictures are not finite"),
    ],
)
def test_a_collapse_is_named(pictures: Tensor, generator: nn.Module, said: str):
    found = list(alarms(pictures, generator))
    assert len(found) == (said != "")
    assert all(said in sentence for sentence in found)


def test_a_collapse_within_one_class_is_named():
    pictures, captions = DRAWN.clone(), ["a cat", "a dog", "a fox"] * 2
    assert not list(alarms(pictures, nn.Linear(2, 2), captions=captions))
    pictures[4] = pictures[1]
    (found,) = alarms(pictures, nn.Linear(2, 2), captions=captions)
    assert found == "its 2 pictures of 'a dog' are equal: it has collapsed there"


def test_pictures_that_differ_much_less_than_the_teachers_are_said_to():
    usual = health_of(DRAWN)["spread"]
    assert not list(alarms(DRAWN, nn.Linear(2, 2), usual=2 * usual))
    (found,) = alarms(DRAWN.mean(dim=0) + 0.05 * DRAWN, nn.Linear(2, 2), usual=usual)
    assert "it draws much less than the teacher" in found


@pytest.mark.parametrize(("classes", "more"), [(0, []), (10, []), (1000, [1000, 2000, 3000])])
def test_pictures_of_many_classes_are_judged_with_more_of_one(classes: int, more: list[int]):
    """Of twenty pictures of ten classes, two are of each."""
    assert list(gallery(Path(), classes, None)._more_of_the_first()) == more


@pytest.mark.parametrize(
    ("more", "usual", "said"),
    [
        (DRAWN[:3], 0.4, ""),
        (DRAWN[:1].expand(3, -1, -1, -1), 0.4, "4 pictures of 'class 0' are equal"),
        (DRAWN[:3], 9.0, "it draws much less than the teacher"),
    ],
)
def test_a_preview_looks_at_one_class_and_at_the_teachers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: Tensor, usual: float, said: str
):
    pictures = torch.cat([DRAWN[:1], torch.rand(19, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8])
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "teacher.json").write_text(json.dumps({"health": {"spread": usual}}))
    roles = SimpleNamespace(generator=None, network=lambda _: SimpleNamespace(net=nn.Linear(2, 2)))
    gallery(tmp_path, 1000, more)._warn(SimpleNamespace(roles=roles), "0-dmd", pictures)
    assert said in caplog.text
    assert len(caplog.records) == (said != "")


def gallery(out: Path, classes: int, more: Tensor | None) -> Gallery:
    """Of a student who draws these further pictures."""
    return Gallery(
        SimpleNamespace(
            pipeline=SimpleNamespace(kind="label", classes=range(classes), shape=(3, 8, 8)),
            classes=range(classes),
            config=SimpleNamespace(out=out),
            asked=lambda numbers: Items(labels=torch.tensor(list(numbers)) % classes),
            drawn=lambda _, numbers: more,
            pictures=lambda samples: samples,
        )
    )
