"""Sources on disk: image folders, and paths that are not there."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded import bytes_of, encoded, noise_image, pixels_of, save
from PIL import Image

from fastgen.data import ImageFolder, ParquetImages, PromptFile
from fastgen.data.decode import decode
from fastgen.errors import UserError


def test_class_folders_become_labels(tmp_path):
    images = {"dog/b.png": 0, "dog/a.jpeg": 1, "cat/deep/er/x.webp": 2, "ant/1.BMP": 3}
    for name, seed in images.items():
        kind = {".jpeg": "JPEG", ".webp": "WEBP", ".BMP": "BMP"}.get(Path(name).suffix, "PNG")
        save(tmp_path / name, encoded(noise_image(seed), kind))
    save(tmp_path / "dog/.hidden.png", b"")
    save(tmp_path / ".cache/a.png", b"")
    save(tmp_path / "dog/notes.md", "text")
    source = ImageFolder(tmp_path, 8)
    source.check()
    assert [file.relative_to(tmp_path).as_posix() for file in source.files] == [
        "ant/1.BMP",
        "cat/deep/er/x.webp",
        "dog/a.jpeg",
        "dog/b.png",
    ]
    items = source.items([3, 0, 2, 1])
    assert items.labels.tolist() == [2, 0, 2, 1]
    assert items.labels.dtype == torch.int64
    assert items.prompts is None
    assert (source.num_classes, source.has_images, len(source)) == (3, True, 4)
    assert torch.equal(bytes_of(items.images[0]), pixels_of(noise_image(0)))
    assert torch.equal(bytes_of(items.images[1]), pixels_of(noise_image(3)))


def test_class_folders_named_by_numbers_are_sorted_as_numbers(tmp_path):
    for number in range(12):
        save(tmp_path / str(number) / "a.png", encoded(Image.new("L", (8, 8), number)))
    items = ImageFolder(tmp_path, 8, channels=1).items(range(12))
    assert items.labels.tolist() == bytes_of(items.images)[:, 0, 0, 0].tolist() == list(range(12))


def test_flat_images_have_the_text_beside_them_as_prompt(tmp_path):
    for name, text in {"b": "a bee,\r\n on a flower \n", "a": "\ufeffein \u00c4ffchen", "c": ""}.items():
        save(tmp_path / f"{name}.png", encoded(noise_image(0)))
        save(tmp_path / f"{name}.txt", text)
    source = ImageFolder(tmp_path, 8)
    source.check()
    assert source.prompts == ("ein \u00c4ffchen", "a bee, on a flower", "")
    assert source.items([1, 0]).prompts == ("a bee, on a flower", "ein \u00c4ffchen")
    assert source.items([1]).labels is None
    assert source.num_classes is None


def test_images_alone_have_neither_label_nor_prompt(tmp_path):
    save(tmp_path / "a.png", encoded(noise_image(0)))
    save(tmp_path / "thumbnails/readme.txt", "no images here")
    source = ImageFolder(tmp_path, 8)
    items = source.items([0])
    assert items.labels is None
    assert items.prompts is None
    assert source.num_classes is None
    assert source.prompts is None


def test_class_folders_may_have_captions_too(tmp_path):
    for name in ("x", "y"):
        save(tmp_path / name / "a.png", encoded(noise_image(0)))
        save(tmp_path / name / "a.txt", f"the letter {name}")
    items = ImageFolder(tmp_path, 8).items([1])
    assert items.labels.tolist() == [1]
    assert items.prompts == ("the letter y",)


def test_a_link_that_leads_back_up_is_not_followed(tmp_path):
    save(tmp_path / "x/a.png", encoded(noise_image(0)))
    (tmp_path / "x/again").symlink_to(tmp_path / "x", target_is_directory=True)
    assert len(ImageFolder(tmp_path, 8)) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no images"),
        ({"readme.txt": ""}, "has no images"),
        ({"x/a.png": "", "b.png": ""}, "beside class folders"),
        ({"x/a.png": "", "y/readme.txt": ""}, "no image in 'y'"),
        ({"a.png": "", "a.txt": "", "b.png": "", "c.png": ""}, r"2 of the 3 images .* first .*b\.txt"),
        ({"a.png": "", "a.txt": b"caf\xe9"}, r"a\.txt, line 1: byte 0xe9"),
    ],
)
def test_an_ambiguous_folder_is_refused_before_training(files, message, tmp_path):
    for name, content in files.items():
        save(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        ImageFolder(tmp_path, 8).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 0}, "size is 0"), ({"channels": 2}, "channels is 2"), ({"cache_gib": -1}, "cache_gib is -1")],
)
def test_impossible_image_settings_are_refused(settings, message, tmp_path):
    save(tmp_path / "a.png", encoded(noise_image(0)))
    with pytest.raises(UserError, match=message):
        ImageFolder(**{"path": tmp_path, "size": 8, **settings}).check()


def test_missing_paths_are_refused_with_the_path(tmp_path):
    gone = tmp_path / "gone"
    for source in (ImageFolder(gone, 8), ParquetImages(gone, 8), PromptFile(gone)):
        with pytest.raises(UserError, match=str(gone)):
            source.check()


@pytest.mark.parametrize(("images_kept", "decodes"), [(3, 1), (2.9, 2)])
def test_images_are_decoded_once_if_all_of_them_fit(images_kept, decodes, tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / f"{name}.png", encoded(noise_image(ord(name))))
    counts = Counter()

    def counted(file, name, **settings):
        counts[file.stem] += 1
        return decode(file, name, **settings)

    monkeypatch.setattr("fastgen.data.images.decode", counted)
    source = ImageFolder(tmp_path, 8, cache_gib=images_kept * 3 * 8 * 8 / 2**30)
    first, second = source.items([2, 0, 1]).images, source.items([0, 1, 2]).images
    assert counts == dict.fromkeys("abc", decodes)
    assert torch.equal(first, second[[2, 0, 1]])
    assert torch.equal(bytes_of(second[0]), pixels_of(noise_image(ord("a"))))


def test_bytes_map_onto_minus_one_to_one(tmp_path):
    save(tmp_path / "a.png", encoded(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))))
    images = ImageFolder(tmp_path, 16, channels=1).items([0]).images
    assert images.dtype == torch.float32
    assert torch.allclose(images.flatten(), torch.linspace(-1, 1, 256), atol=1e-6)
