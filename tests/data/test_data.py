"""Sources without files of images, and the table of all sources."""

from pathlib import Path

import pytest
import torch
from encoded import save
from pydantic import TypeAdapter
from sklearn.datasets import load_digits

from fastgen.data import SOURCES, Digits, ImageFolder, Noise, ParquetImages, PromptFile, from_canvas, to_canvas
from fastgen.data.hub import HubImages
from fastgen.data.prompts import numbered_prompts
from fastgen.data.shards import WebDataset
from fastgen.errors import UserError


def test_digits_are_the_real_ones_on_a_canvas():
    source = Digits()
    items = source.items([0, 5, 5])
    assert len(source) == 1797
    assert items.images.shape == (3, 1, 16, 16)
    assert items.images.dtype == torch.float32
    assert torch.equal(items.images[1], items.images[2])
    assert items.labels.tolist() == load_digits().target[[0, 5, 5]].tolist()
    everything = source.items(range(1797))
    assert everything.images.min() == -1
    assert everything.images.max() == 1


def test_the_canvas_is_undone_exactly_on_real_digits():
    real = torch.from_numpy(load_digits().data).float() / 16
    restored = from_canvas(to_canvas(real.reshape(-1, 1, 8, 8)))
    assert restored.shape == (1797, 64)
    assert (restored - real).abs().max() < 1e-5
    assert (from_canvas(Digits().items(range(1797)).images) - real).abs().max() < 1e-5


def test_leaving_the_canvas_is_the_least_squares_fit():
    canvas = to_canvas(torch.full((1, 1, 8, 8), 0.5)) + 0.1 * torch.randn(1, 1, 16, 16)
    unit_digits = torch.eye(64).reshape(64, 1, 8, 8)
    columns = (to_canvas(unit_digits).flatten(1).T + 1) / 2
    expected = torch.linalg.lstsq(columns, (canvas.flatten() + 1)[:, None] / 2).solution.flatten()
    assert 0 < expected.min() < expected.max() < 1
    assert torch.allclose(from_canvas(canvas)[0], expected, atol=1e-5)


def test_leaving_the_canvas_clips():
    digits = from_canvas(3 * torch.randn(8, 1, 16, 16))
    assert digits.min() == 0
    assert digits.max() == 1


def test_prompts_are_the_lines_of_a_file(tmp_path):
    content = "\ufeffa red fox\r\n\r\n  two  spaces \n\u732b \U0001f98a\r\n\t\na red fox"
    source = PromptFile(save(tmp_path / "p.txt", content))
    source.check()
    assert source.prompts == ("a red fox", "two  spaces", "\u732b \U0001f98a", "a red fox")
    items = source.items([2, 0])
    assert items.prompts == ("\u732b \U0001f98a", "a red fox")
    assert items.images is None
    assert items.labels is None
    assert (len(source), source.has_images, source.num_classes) == (4, False, None)


def test_numbered_prompts_keep_empty_lines_except_at_the_end(tmp_path):
    file = save(tmp_path / "p.txt", "\ufeffa\r\n\r\n  b \n\t\nc\n\n \n")
    assert numbered_prompts(file) == ("a", "", "b", "", "c")
    assert PromptFile(file).prompts == ("a", "b", "c")
    with pytest.raises(UserError, match="has no prompts"):
        numbered_prompts(save(tmp_path / "blank.txt", " \n\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompts"),
        (b"\xef\xbb\xbf \r\n\n", "has no prompts"),
        (b"fine\n\ncaf\xe9\n", "line 3: byte 0xe9 is not valid UTF-8"),
        (b"fine\na\0b\n", "line 2 holds a control character, U\\+0000, at place 2"),
        ("fox".encode("utf-16"), "line 1: byte 0xff is not valid UTF-8"),
        ("fox".encode("utf-16-le"), "line 1 holds a control character.*UTF-16"),
    ],
)
def test_a_prompt_file_that_is_not_text_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        PromptFile(save(tmp_path / "p.txt", content)).check()


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        PromptFile(tmp_path).check()


def test_noise_asks_for_each_class_or_for_nothing():
    conditional = Noise(4)
    conditional.check()
    items = conditional.items([3, 0, 5])
    assert items.labels.tolist() == [3, 0, 1]
    assert items.labels.dtype == torch.int64
    assert (len(conditional), conditional.num_classes, conditional.has_images) == (4, 4, False)
    empty = Noise().items([0, 0])
    assert (empty.images, empty.labels, empty.prompts) == (None, None, None)
    assert len(Noise()) > 0
    with pytest.raises(UserError, match="num_classes is 0"):
        Noise(0).check()


MADE = {
    "digits": ({}, Digits()),
    "folder": ({"path": "a", "size": 32, "channels": 1}, ImageFolder(Path("a"), 32, channels=1)),
    "parquet": ({"path": "a", "size": 32, "label": "kind"}, ParquetImages(Path("a"), 32, label="kind")),
    "prompts": ({"path": "a.txt"}, PromptFile(Path("a.txt"))),
    "noise": ({"num_classes": 10}, Noise(10)),
    "datasets": ({"path": "a/b", "size": 32, "name": "c"}, HubImages("a/b", 32, name="c")),
    "webdataset": ({"path": "a", "size": 32}, WebDataset(Path("a"), 32)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_made_from_plain_settings(name):
    settings, source = MADE[name]
    assert TypeAdapter(SOURCES[name]).validate_python(settings) == source


def test_digits_made_from_settings_work():
    digits = TypeAdapter(SOURCES["digits"]).validate_python({})
    assert digits.items([0]).labels.tolist() == [0]
