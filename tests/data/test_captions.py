"""Captions: one of an image, several of it, tags in any order, and none at all, drawn by position."""

from collections import Counter

import numpy as np
import pytest
from encoded import encoded, noise_image, save

from fastgen.data import ImageFolder, Loader, PromptFile
from fastgen.data.captions import TAG_ORDERS, Captions
from fastgen.errors import UserError


def folder(path, texts, **settings):
    for name, text in texts.items():
        save(path / f"{name}.png", encoded(noise_image(0)))
        save(path / f"{name}.txt", text)
    return ImageFolder(path, 8, **settings)


def told(loader, start, stop):
    return [loader.take(position, 1).prompts[0] for position in range(start, stop)]


def test_each_line_is_a_caption_of_its_own(tmp_path):
    source = folder(tmp_path, {"a": "one\ntwo\n\nthree", "b": "four"}, text="lines")
    source.check()
    assert list(source.prompts) == ["one", "four"]
    seen = Counter(told(Loader(source, seed=0, images=False), 0, 400))
    assert seen["four"] == 200
    assert all(40 < seen[text] < 95 for text in ("one", "two", "three"))


def test_which_caption_is_drawn_depends_on_seed_and_position_alone(tmp_path):
    source = folder(tmp_path, {"a": "one\ntwo\nthree", "b": "four\nfive"}, text="lines")
    whole = Loader(source, seed=3, images=False).take(0, 40).prompts
    assert told(Loader(source, seed=3), 17, 40) == list(whole[17:])
    assert Loader(source, seed=4, images=False).take(0, 40).prompts != whole


def test_tags_come_in_other_orders(tmp_path):
    source = folder(tmp_path, {"a": "girl, red hair,,smile , 1990s"}, text="tags")
    seen = set(told(Loader(source, seed=0, images=False), 0, 200))
    assert source.prompts[0] == "girl, red hair, smile, 1990s"
    assert 4 < len(seen) <= TAG_ORDERS
    assert {tuple(sorted(text.split(", "))) for text in seen} == {("1990s", "girl", "red hair", "smile")}


def test_dropped_captions_are_the_empty_prompt(tmp_path):
    source = PromptFile(save(tmp_path / "p.txt", "a\nb\n"))
    prompts = Loader(source, seed=0, dropout=0.25).take(0, 2000).prompts
    assert 420 < prompts.count("") < 580
    assert Loader(source, seed=0).take(0, 2000).prompts.count("") == 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_said_to_be_asked_for_is_asked_for(dropout, tmp_path):
    source = folder(tmp_path, {"a": "one\ntwo\nthree", "b": "four\nfive", "c": "six"}, text="lines")
    loader = Loader(source, seed=1, dropout=dropout, images=False)
    texts = [*source.captions.texts, ""]
    for count in (1, 3, 7, 20):
        asked = {texts[number] for number in np.flatnonzero(loader.drawn(count))}
        assert asked == set(loader.take(0, count).prompts)


def test_captions_of_several_sources_keep_their_places():
    several = Captions.read([["a\nb"], ["c"]], "lines")
    joined = Captions.joined([Captions(("x", "y")), several])
    assert list(joined) == ["x", "y", "a", "c"]
    assert joined.numbers([3, 2, 0], lambda place: 1).tolist() == [4, 3, 0]
    assert [joined.texts[number] for number in (4, 3, 0)] == ["c", "b", "x"]


METADATA = """{"file_name": "deep/b.jpg", "text": ["a bee", "an insect"], "label": 1}
{"file_name": "a.png", "text": "a cat", "label": 0}
"""


def test_metadata_names_images_captions_and_labels(tmp_path):
    save(tmp_path / "deep/b.jpg", encoded(noise_image(1), "JPEG"))
    save(tmp_path / "a.png", encoded(noise_image(2)))
    save(tmp_path / "metadata.jsonl", METADATA)
    source = ImageFolder(tmp_path, 8)
    source.check()
    assert [file.name for file in source.files] == ["b.jpg", "a.png"]
    assert (list(source.prompts), source.num_classes) == (["a bee", "a cat"], 2)
    assert source.items([1, 0]).labels.tolist() == [0, 1]
    assert set(told(Loader(source, seed=0), 0, 40)) == {"a bee", "an insect", "a cat"}
    assert tmp_path / "metadata.jsonl" in source.reads


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2"),
        ("[1]", "no mapping"),
        ('{"text": "x"}', "no file_name"),
        ('{"file_name": "../a.png", "text": "x"}', "lie in that folder"),
        ('{"file_name": "/etc/passwd", "text": "x"}', "lie in that folder"),
        ('{"file_name": "z.png", "text": "x"}', "no file in"),
        ('{"file_name": "a.png"}', "have no text"),
        ('{"file_name": "a.png", "text": 3}', "no text as text"),
        ('{"file_name": "a.png", "text": "\\u0000"}', "control character"),
        ('{"file_name": "a.png", "text": "x", "label": -1}', "1 of the 2 lines"),
    ],
)
def test_metadata_that_says_something_else_is_refused_by_its_line(line, message, tmp_path):
    save(tmp_path / "a.png", encoded(noise_image(0)))
    save(tmp_path / "metadata.jsonl", f'{{"file_name": "a.png", "text": "a"}}\n{line}\n')
    source = ImageFolder(tmp_path, 8)
    with pytest.raises(UserError, match=message):
        source.check()
