"""WebDataset shards, asked for by number, within caps."""

import io
import tarfile

import pytest
import torch
from encoded import bytes_of, encoded, noise_image, pixels_of

from fastgen.data import Loader, WebDataset
from fastgen.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))


def shard(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(number, **others):
    image = {f"{number:04d}.png": encoded(noise_image(number))}
    return image | {f"{number:04d}.{suffix}": content for suffix, content in others.items()}


def test_members_of_one_name_belong_together(tmp_path):
    for part in range(2):
        held = {}
        for number in range(3 * part, 3 * part + 3):
            held |= sample(number, txt=f"prompt {number}\n".encode(), cls=str(number % 4).encode(), json=b"{}")
        shard(tmp_path / f"set/{part:05d}.tar", held)
    source = WebDataset(tmp_path / "set", 8)
    source.check()
    assert (len(source), source.num_classes) == (6, 4)
    assert list(source.prompts) == [f"prompt {number}" for number in range(6)]
    items = source.items([4, 1])
    assert (items.labels.tolist(), items.prompts) == ([0, 1], ("prompt 4", "prompt 1"))
    assert torch.equal(bytes_of(items.images[0]), pixels_of(noise_image(4)))
    assert source.named(4) == f"1 of {tmp_path / 'set/00001.tar'}"
    whole = Loader(source, seed=0).take(0, 12).prompts
    assert Loader(source, seed=0).take(7, 5).prompts == whole[7:]


def test_captions_may_stand_in_json_and_be_several(tmp_path):
    held = sample(0, json=b'{"caption": "a\\nb"}') | sample(1, json=b'{"text": "c"}')
    source = WebDataset(shard(tmp_path / "a.tar", held), 8, text="lines")
    assert source.captions.texts == ("a", "b", "c")
    assert list(WebDataset(source.path, 8).prompts) == ["a b", "c"]


def test_the_places_are_read_once(tmp_path, monkeypatch):
    path = shard(tmp_path / "a.tar", sample(0) | sample(1))
    assert len(WebDataset(path, 8)) == 2
    monkeypatch.setattr("fastgen.data.shards.members", None)
    assert len(WebDataset(path, 8)) == 2


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("members", "mode", "message"),
    [
        ({"a.txt": b"a"}, "w", "holds no image"),
        (sample(0, txt=b"a") | sample(1), "w", "1 of the 2 images"),
        (sample(0, cls=b"1") | sample(1), "w", r"no class \(.cls\), first image 1 of"),
        (sample(0, cls=b"-1"), "w", "whole number from 0 on"),
        (sample(0, cls=b"1" * 99), "w", "a file with one number"),
        (sample(0, txt=b"\xff"), "w", "not valid UTF-8"),
        (sample(0, txt=b"a\0b"), "w", "control character"),
        (sample(0), "w:gz", "not compressed"),
        ({f"{LONG}.png": b""}, "w", "header of an archive's member"),
    ],
)
def test_shards_that_hold_something_else_are_refused(members, mode, message, tmp_path):
    source = WebDataset(shard(tmp_path / "a.tar", members, mode), 8)
    with pytest.raises(UserError, match=message):
        _ = source.check(), list(source.prompts)


def test_an_image_beyond_the_cap_is_not_read(tmp_path, monkeypatch):
    source = WebDataset(shard(tmp_path / "a.tar", sample(0)), 8, unreadable=0)
    source.check()
    monkeypatch.setattr("fastgen.limits.Cap.most", property(lambda cap: 10))
    with pytest.raises(UserError, match="an image file at most 10"):
        source.items([0])


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(UserError, match="no tar file at"):
        WebDataset(tmp_path / "nothing", 8).check()
