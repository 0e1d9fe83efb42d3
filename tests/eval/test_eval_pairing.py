"""Which prompt an image file was drawn for: by its number, or by its manifest, whatever else is beside it."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from encoded import encoded, save
from PIL import Image

from eval.collect import Collector, collect
from eval.columns import Eyes
from eval.images.decode import Reading
from eval.images.sets import open_images
from eval.images.sources import FileSource, Request
from fastgen.cli import main
from fastgen.errors import UserError

COUNT = 12


def picture(level: int, side: int = 16) -> bytes:
    return encoded(Image.fromarray(np.full((side, side, 3), level, np.uint8)))


def prompts_file(folder: Path) -> Path:
    return save(folder / "prompts.txt", "".join(f"prompt {i}\n" for i in range(COUNT)))


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder.parent))
    return folder.with_suffix(".zip")


def pairs(path: Path, prompts: Path | None, *, skip_bad: bool = False, share: range = range(COUNT)) -> dict[int, str]:
    """Level of the picture -> its prompt."""
    source = FileSource(path, Reading(5, skip_bad=skip_bad), Request.read(prompts, None).prompts)
    batches = list(source.batches(share))
    return {
        int(image[0, 0, 0]): prompt
        for batch in batches
        for image, prompt in zip(batch.images, batch.prompts or (), strict=True)
    }


@pytest.fixture(params=["folder", "zip"])
def numbered(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """0.png ... 11.png, the level of each its number."""
    for level in range(COUNT):
        save(tmp_path / "images" / f"{level}.png", picture(level))
    return zipped(tmp_path / "images") if request.param == "zip" else tmp_path / "images"


def test_files_pair_with_prompts_by_their_numbers(numbered: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path)
    expected = {i: f"prompt {i}" for i in range(COUNT)}
    assert pairs(numbered, prompts) == expected
    assert pairs(numbered, prompts, share=range(7, 10)) == {i: expected[i] for i in range(7, 10)}


@pytest.mark.parametrize("bad", [b"", picture(0, side=9)], ids=["unreadable", "another size"])
def test_a_skipped_image_keeps_its_place(tmp_path: Path, bad: bytes) -> None:
    for level in range(COUNT):
        save(tmp_path / "images" / f"{level}.png", bad if level == 3 else picture(level))
    prompts = prompts_file(tmp_path)
    expected = {i: f"prompt {i}" for i in range(COUNT) if i != 3}
    assert pairs(tmp_path / "images", prompts, skip_bad=True) == expected
    reading = Reading(5, skip_bad=True)
    collector = Collector(Eyes(None), frozenset(), first=0, pictures=6, seed=0)
    seen = collect(
        FileSource(tmp_path / "images", reading).batches(range(COUNT)), collector, total=COUNT, title="t", skipped=()
    )
    assert {number: int(image[0, 0, 0]) for number, image in seen.pictures.items()} == {i: i for i in (0, 1, 2, 4, 5)}
    assert seen.columns["numbers"].tolist() == [i for i in range(COUNT) if i != 3]


def described(folder: Path) -> None:
    """A manifest in another order than the names, and an image that it does not name."""
    lines = [{"file_name": f"{name}.png", "text": f"text of {name}", "label": ord(name)} for name in "cab"]
    save(folder / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for name in "abcd":
        save(folder / f"{name}.png", picture(ord(name)))


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_of_an_image_folder_says_prompts_and_labels(tmp_path: Path, packed: bool) -> None:
    described(tmp_path / "images")
    path = zipped(tmp_path / "images") if packed else tmp_path / "images"
    (batch,) = FileSource(path, Reading(), ("another",)).batches(range(9))
    assert batch.images[:, 0, 0, 0].tolist() == batch.labels.tolist() == [ord(name) for name in "cab"]
    assert batch.prompts == ("text of c", "text of a", "text of b")
    assert len(batch.conditions.unique()) == 3
    assert len(open_images(path)) == 3


def test_the_record_of_the_sampler_counts_what_it_names(tmp_path: Path) -> None:
    """An earlier, larger run left a picture in the folder."""
    images = [{"file": f"{i:05d}.png", "prompt": "ab"[i % 2], "label": None, "seed": i} for i in range(4)]
    save(tmp_path / "images" / "samples.json", json.dumps({"pipeline": "p", "images": images}))
    for i in range(5):
        save(tmp_path / "images" / f"{i:05d}.png", picture(i))
    (batch,) = FileSource(tmp_path / "images", Reading(), None).batches(range(5))
    assert batch.prompts == ("a", "b", "a", "b")
    assert torch.equal(batch.conditions[:2], batch.conditions[2:])
    assert batch.labels is None


def test_a_file_that_is_named_and_not_there_is_refused_or_skipped_in_its_place(tmp_path: Path) -> None:
    described(tmp_path / "images")
    (tmp_path / "images" / "a.png").unlink()
    for path in (tmp_path / "images", zipped(tmp_path / "images")):
        with pytest.raises(UserError, match=r"a\.png.* cannot be read"):
            pairs(path, None)
        assert pairs(path, None, skip_bad=True) == {ord(name): f"text of {name}" for name in "cb"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("samples.json", "{}", "KeyError"),
        ("samples.json", '{"images": []}', "names no image"),
        ("metadata.jsonl", "{", "JSONDecodeError"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "3 is not a prompt"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n{"file_name": "b.png"}', "1 of its 2 images"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    save(tmp_path / "images" / name, content)
    with pytest.raises(UserError, match=rf"{name}.*{problem}.* take it out"):
        open_images(tmp_path / "images")


def test_what_the_sampler_wrote_is_measured_with_its_prompts(tmp_path: Path) -> None:
    tiny.stable_diffusion().save_pretrained(tmp_path / "pipe")
    asked = ["--prompt", "fox", "--prompt", "owl", "--num", "3", "--steps", "1", "--device", "cpu"]
    assert main(["sample", str(tmp_path / "pipe"), *asked, "--out", str(tmp_path / "out")]) == 0
    (batch,) = FileSource(tmp_path / "out", Reading(), None).batches(range(3))
    assert batch.prompts == ("fox", "owl", "fox")
