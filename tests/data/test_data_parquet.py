"""Sources on disk: images in parquet files, their labels and captions."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoded import bytes_of, encoded, noise_image, pixels_of, save

from fastgen.data import ParquetImages, mapped
from fastgen.errors import UserError


def write_parquet(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


PNGS = [encoded(noise_image(seed)) for seed in range(4)]
STRUCTS = [{"bytes": png, "path": None} for png in PNGS]


@pytest.mark.parametrize("cells", [STRUCTS, PNGS], ids=["struct", "bytes"])
def test_parquet_rows_are_images_labels_and_captions(cells, tmp_path):
    captions = ["one", "", "drei", "\u56db"]
    file = write_parquet(tmp_path / "a.parquet", image=cells, label=[1, 0, 5, 1], text=captions)
    source = ParquetImages(file, 8)
    source.check()
    items = source.items([2, 0, 2])
    assert torch.equal(bytes_of(items.images), torch.stack([pixels_of(noise_image(n)) for n in (2, 0, 2)]))
    assert items.labels.tolist() == [5, 1, 5]
    assert items.prompts == ("drei", "one", "drei")
    assert source.prompts == tuple(captions)
    assert (len(source), source.num_classes, source.has_images) == (4, 6, True)


def test_parquet_columns_are_found_by_name_and_type(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet",
        picture=PNGS,
        label=["cat", "dog", "cat", "dog"],  # not integers, hence not labels
        labels=pa.array([3, 2, 1, 0], pa.uint8()),
        title=["a", "b", "c", "d"],
    )
    found = ParquetImages(file, 8, image="picture").items([0])
    assert found.labels.tolist() == [3]
    assert found.prompts is None
    named = ParquetImages(file, 8, image="picture", caption="title").items([3])
    assert named.prompts == ("d",)
    by_word = ParquetImages(file, 8, image="picture", caption="label").items([1])
    assert by_word.prompts == ("dog",)


def test_parquet_without_labels_and_captions(tmp_path):
    source = ParquetImages(write_parquet(tmp_path / "a.parquet", image=PNGS), 8)
    assert source.num_classes is None
    assert source.prompts is None
    assert source.items([1]).labels is None


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    write_parquet(tmp_path / "b.parquet", image=[b"straw", PNGS[3], b"straw"], label=[3, 4, 5])
    write_parquet(tmp_path / "a.parquet", image=PNGS[:3], label=[0, 1, 2])
    source = ParquetImages(tmp_path, 8, unreadable=0)
    items = source.items([4, 2])
    assert len(source) == 6
    assert items.labels.tolist() == [4, 2]
    assert torch.equal(bytes_of(items.images), torch.stack([pixels_of(noise_image(n)) for n in (3, 2)]))
    for row, name in {3: "row 0", 5: "row 2"}.items():
        with pytest.raises(UserError, match=rf"{name} of .*b\.parquet"):
            source.items([row])


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"photo": PNGS}, {}, r"'image' of .* does not exist.*photo \(binary\)"),
        ({"image": [1, 2]}, {}, "'image' of .* is of type int64"),
        ({"image": PNGS}, {"label": "class_id"}, "'class_id' of .* does not exist"),
        ({"image": PNGS, "kind": list("abcd")}, {"label": "kind"}, "'kind' of .* is of type string"),
        ({"image": PNGS, "n": [1, 2, 3, 4]}, {"caption": "n"}, "'n' of .* is of type int64"),
        ({"image": PNGS, "label": [0, -1, 2, 3]}, {}, "'label' of .* has the label -1"),
        ({"image": PNGS, "label": [0, 1, None, None]}, {}, r"is empty in 2 rows, first in row 2 of .*\.parquet"),
        ({"image": PNGS, "caption": ["a", None, "c", "d"]}, {}, "is empty in 1 rows, first in row 1 of"),
        ({"image": pa.array([], pa.binary())}, {}, "has no rows"),
    ],
)
def test_parquet_mistakes_are_refused_before_training(columns, settings, message, tmp_path):
    source = ParquetImages(write_parquet(tmp_path / "a.parquet", **columns), 8, **settings)
    with pytest.raises(UserError, match=message):
        source.check()


@pytest.mark.parametrize("name", ["gone.parquet", "."])
def test_parquet_that_is_not_there_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=f"there is no parquet file at {tmp_path}"):
        ParquetImages(tmp_path / name, 8).check()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_file_that_is_not_parquet_is_refused(content, tmp_path):
    file = save(tmp_path / "a.parquet", content)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        ParquetImages(file, 8).check()


def test_a_damaged_parquet_file_is_refused(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", image=PNGS)
    content = bytearray(file.read_bytes())
    save(file, bytes(content[: len(content) // 2]))
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        ParquetImages(file, 8).check()
    content[4:60] = b"\xff" * 56  # the header of the first page
    save(file, bytes(content))
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        ParquetImages(file, 8).items([0])


@pytest.mark.parametrize("cell", [{"bytes": None, "path": "../../a.png"}, None])
def test_a_row_without_bytes_is_refused(cell, tmp_path):
    source = ParquetImages(write_parquet(tmp_path / "a.parquet", image=[*STRUCTS, cell]), 8, unreadable=0)
    source.check()
    with pytest.raises(UserError, match=r"row 4 of .*a\.parquet has no bytes"):
        source.items([4])


def test_cifar10_reads_from_the_hub_layout(assets):
    source = ParquetImages(assets / "data/cifar10/test.parquet", 32)
    source.check()
    assert (len(source), source.num_classes, source.prompts) == (10_000, 10, None)
    items = source.items(range(2000))
    assert items.images.shape == (2000, 3, 32, 32)
    mean = (items.images.mean((0, 2, 3)) + 1) / 2
    assert torch.allclose(mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.01)
    assert set(items.labels.tolist()) == set(range(10))


def test_emoji_reads_from_the_hub_layout(assets):
    source = ParquetImages(assets / "data/emoji/train.parquet", 64)
    source.check()
    assert (len(source), source.num_classes, len(source.prompts)) == (7920, None, 7920)
    items = source.items([0, 7919])
    assert items.prompts == (source.prompts[0], source.prompts[7919])
    assert items.images.shape == (2, 3, 64, 64)
    assert all(", " in prompt for prompt in items.prompts)


@pytest.mark.parametrize("rows", [7, 64])
def test_a_large_image_column_is_mapped_and_not_held(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "HELD", 0)
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "cache"))
    names = ("a.parquet", "b.parquet")
    for part, name in enumerate(names):
        cells = [STRUCTS[(part + row) % 4] for row in range(rows)]
        write_parquet(tmp_path / "set" / name, image=cells, label=[part] * rows)
    before = pa.total_allocated_bytes()
    source, again = (ParquetImages(tmp_path / "set", 8) for _ in range(2))
    items = source.items([rows, 1, 2 * rows - 1])
    numbers = (1 % 4, 1 % 4, rows % 4)
    assert torch.equal(bytes_of(items.images), torch.stack([pixels_of(noise_image(n)) for n in numbers]))
    assert items.labels.tolist() == [1, 0, 1]
    assert pa.total_allocated_bytes() - before < 4096
    (file,) = (tmp_path / "cache/columns").iterdir()
    made = file.stat().st_mtime_ns
    assert torch.equal(again.items([1]).images, items.images[1:2])
    assert file.stat().st_mtime_ns == made
    write_parquet(tmp_path / "set" / "b.parquet", image=STRUCTS[:1], label=[4])
    assert ParquetImages(tmp_path / "set", 8).items([rows]).labels.tolist() == [4]


def test_images_that_need_more_room_than_there_is_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "HELD", 0)
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    source = ParquetImages(write_parquet(tmp_path / "a.parquet", image=STRUCTS), 8)
    with pytest.raises(UserError, match=r"unpacked into .*, where 10 bytes are free.*FASTGEN_CACHE"):
        source.items([0])


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_unreadable_images_give_way_with_their_labels_and_captions(cache_gib, tmp_path, caplog):
    cells = [b"straw", *PNGS[1:3], b"", b"hay"]
    words, labels = list("abcde"), [0, 1, 2, 3, 4]
    file = write_parquet(tmp_path / "a.parquet", image=cells, label=labels, caption=words)
    source = ParquetImages(file, 8, cache_gib=cache_gib)
    for _ in range(2):
        items = source.items([0, 2, 3, 4, 0])
        assert items.labels.tolist() == [1, 2, 1, 1, 1]
        assert items.prompts == ("b", "c", "b", "b", "b")
        chosen = [pixels_of(noise_image(n)) for n in (1, 2, 1, 1, 1)]
        assert torch.equal(bytes_of(items.images), torch.stack(chosen))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert {row for row in (0, 3, 4) if any(f"row {row} of" in one for one in said)} == {0, 3, 4}
    strict = ParquetImages(file, 8, cache_gib=cache_gib, unreadable=2)
    with pytest.raises(UserError, match=r"cannot be read.*; 2 were skipped, as many as `unreadable` allows"):
        strict.items([0, 1, 3, 4])


def test_a_set_without_any_readable_image_is_refused(tmp_path):
    source = ParquetImages(write_parquet(tmp_path / "a.parquet", image=[b"straw"] * 3), 8)
    with pytest.raises(UserError, match="cannot be read"):
        source.items([1])
