"""Data sets by the library `datasets`: at hand and streamed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from encoded import bytes_of, encoded, noise_image, pixels_of, save

from fastgen.data import HubImages, Loader, ParquetImages
from fastgen.errors import UserError

datasets = pytest.importorskip("datasets")
ROWS = 50


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Laid out as on the hub: two files in `data`, of small row groups."""
    place = tmp_path / "set"
    (place / "data").mkdir(parents=True)
    for number, rows in enumerate((range(30), range(30, ROWS))):
        cells = {
            "image": [{"bytes": encoded(noise_image(row)), "path": None} for row in rows],
            "text": [f"prompt {row}" for row in rows],
            "label": [row % 3 for row in rows],
        }
        file = place / f"data/train-{number:05d}-of-00002.parquet"
        parquet.write_table(pa.table(cells), file, row_group_size=7)
    return place


def opened_streams(monkeypatch) -> list[int]:
    """Grows by one whenever a stream is begun."""
    begun: list[int] = []
    load = datasets.load_dataset

    def counted(*args, **kwargs):
        begun.append(1)
        return load(*args, **kwargs)

    monkeypatch.setattr("datasets.load_dataset", counted)
    return begun


def test_a_folder_laid_out_as_on_the_hub(folder):
    source = HubImages(str(folder), 8)
    source.check()
    assert (len(source), source.num_classes, source.prompts[31]) == (ROWS, 3, "prompt 31")
    items = source.items([33, 2])
    assert torch.equal(bytes_of(items.images[0]), pixels_of(noise_image(33)))
    assert (items.labels.tolist(), items.prompts) == ([0, 2], ("prompt 33", "prompt 2"))
    assert all(file.is_file() for file in source.reads)


def test_parquet_files_in_a_folder_of_data(folder):
    source = ParquetImages(folder, 8)
    assert (len(source), source.prompts[31]) == (ROWS, "prompt 31")


def test_image_folders_with_metadata(tmp_path):
    for row in range(3):
        save(tmp_path / f"set/{row}.png", encoded(noise_image(row)))
    lines = "".join(f'{{"file_name": "{row}.png", "text": "p{row}"}}\n' for row in range(3))
    save(tmp_path / "set/metadata.jsonl", lines)
    source = HubImages(str(tmp_path / "set"), 8)
    source.check()
    assert list(source.prompts) == ["p0", "p1", "p2"]
    assert torch.equal(bytes_of(source.items([2]).images[0]), pixels_of(noise_image(2)))


def streamed(folder: Path, **settings) -> HubImages:
    return HubImages(str(folder), 8, streaming=True, **{"rows": ROWS, "window": 8, "label": None, **settings})


@pytest.fixture
def unlabelled(folder) -> Path:
    for file in (folder / "data").iterdir():
        parquet.write_table(parquet.read_table(file).drop_columns("label"), file, row_group_size=7)
    return folder


def test_a_stream_holds_what_is_at_hand(unlabelled):
    source = streamed(unlabelled)
    source.check()
    assert list(source.prompts) == [f"prompt {row}" for row in range(ROWS)]
    images = source.items([9, 0, 49]).images
    assert all(torch.equal(bytes_of(x), pixels_of(noise_image(row))) for x, row in zip(images, (9, 0, 49), strict=True))


def test_a_stream_is_shuffled_in_windows_and_reads_each_row_once_an_epoch(unlabelled, monkeypatch):
    source = streamed(unlabelled)
    loader = Loader(source, seed=0)
    begun = opened_streams(monkeypatch)
    epochs = [[loader.take(start, 5).prompts for start in range(epoch, epoch + ROWS, 5)] for epoch in (0, ROWS)]
    first, second = ([int(text.split()[1]) for part in epoch for text in part] for epoch in epochs)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert all(number // 8 == place // 8 for place, number in enumerate(first))
    assert len(begun) <= 4  # told and all of it, at the beginning of each epoch; the loader is one range ahead


def test_a_stream_goes_on_where_it_stopped_without_reading_what_came_before(unlabelled, monkeypatch):
    whole = Loader(streamed(unlabelled), seed=0)
    expected = [whole.take(start, 5) for start in range(0, ROWS, 5)]
    whole._thread.shutdown()  # what it reads ahead is over
    reads: list[int] = []
    iterate = datasets.IterableDataset.__iter__

    def counted(self):
        for row in iterate(self):
            reads.append(1)
            yield row

    monkeypatch.setattr("datasets.IterableDataset.__iter__", counted)
    resumed = Loader(streamed(unlabelled), seed=0).take(40, 5)
    assert resumed.prompts == expected[8].prompts
    assert torch.equal(resumed.images, expected[8].images)
    assert len(reads) <= 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": True, "rows": 60}, "ended after 50 rows"),
        ({"streaming": True, "rows": 10, "text": "lines"}, "several captions"),
        ({"rows": 10}, "streaming=true"),
        ({"split": "tests"}, "tests"),
        ({"image": "picture"}, "no column 'picture'"),
        ({"caption": "words"}, "no column 'words'"),
    ],
)
def test_mistakes_are_refused_with_the_remedy(settings, message, unlabelled):
    source = HubImages(str(unlabelled), 8, **settings)
    with pytest.raises(UserError, match=message):
        _ = source.check(), source.items([55])


def test_a_stream_of_unknown_length_asks_for_it(unlabelled):
    with pytest.raises(UserError, match=r"data\.rows"):
        streamed(unlabelled, rows=None).check()


def test_a_data_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        HubImages(str(tmp_path / "nowhere"), 8).check()


def test_without_the_library_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("fastgen.data.hub.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fastgen\[datasets\]"):
        HubImages(str(folder), 8).check()
