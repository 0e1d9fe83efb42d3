"""Archives of images and files of statistics that are not what they should be are read or refused, never more."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from encoded import encoded, noise_image
from fuzzing import fuzz, json_texts, mutated
from hypothesis import strategies as st

from eval.images.decode import Reading, image_batches
from eval.images.sets import open_images
from eval.measures.statistics_file import load_statistics
from fastgen.data import ParquetImages

PICTURES = [encoded(noise_image(0, 4, 4)), encoded(noise_image(1, 4, 4), "JPEG"), encoded(noise_image(2, 4, 4), "GIF")]
LABELS = {"labels": [["0.png", 7], ["1.jpg", 8], ["b/2.gif", 9]]}
RECORD = {
    "images": [
        {"file": "0.png", "prompt": "a", "label": 1, "flags": []},
        {"file": "1.jpg", "prompt": "b", "label": 2, "flags": ["nsfw"]},
    ]
}
NAMES = ("0.png", "1.jpg", "b/2.gif")


def zipped(members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def rows(cells: list, labels: list, packing: str) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"image": cells, "label": labels, "caption": ["a", "b", "c"]})
    parquet.write_table(table, buffer, compression=packing)
    return buffer.getvalue()


def arrays(**kept: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    return buffer.getvalue()


IMAGES = dict(zip(NAMES, PICTURES, strict=True))
LABELLED = IMAGES | {"dataset.json": json.dumps(LABELS).encode()}
CLASSED = IMAGES | {"0.cls": b"3", "a" * 120 + ".png": PICTURES[0]}
TARS = [tarred(CLASSED, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
PARQUETS = [
    rows([{"bytes": one, "path": "a"} for one in PICTURES], [1, 2, 3], "zstd"),
    rows(PICTURES, [1, None, 3], "none"),
]
STATISTICS = {"mu": np.zeros(3), "sigma": np.eye(3), "count": np.asarray(9), "extractor": np.asarray("one")}


def read_all(path: Path) -> None:
    for _ in image_batches(open_images(path), Reading(2, mixed_sizes=True, skip_bad=True, workers=1)):
        pass


@fuzz(mutated(zipped(IMAGES), zipped(LABELLED, zipfile.ZIP_DEFLATED)))
def test_zip_archives(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    read_all(tmp_path / "a.zip")


TOLD = st.sampled_from(["dataset.json", "samples.json", "metadata.jsonl"])


@fuzz(st.tuples(TOLD, json_texts(LABELS, RECORD, RECORD["images"][0])))
def test_what_a_zip_archive_says_of_its_images(case: tuple[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(IMAGES | {case[0]: case[1]}))
    read_all(tmp_path / "a.zip")


@fuzz(st.one_of(mutated(*TARS), mutated(*TARS).map(lambda tar: gzip.compress(tar, 1)), mutated(gzip.compress(TARS[0]))))
def test_tar_shards(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    read_all(tmp_path / "a.tar")


@fuzz(mutated(*PARQUETS))
def test_parquet_files(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(content)
    read_all(file)


@fuzz(mutated(*PARQUETS))
def test_parquet_files_to_train_on(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(content)
    source = ParquetImages(file, 4)
    source.check()
    source.items(range(len(source)))


@fuzz(mutated(arrays(**STATISTICS), arrays(mu=STATISTICS["mu"].astype(np.float32), sigma=STATISTICS["sigma"])))
def test_statistics_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    load_statistics(tmp_path / "a.npz")


KINDS = st.sampled_from(["f4", "f8", "i8", "c16", "U3", "?", "M8[s]"])
SHAPES = st.sampled_from([(), (0,), (3,), (1, 3), (3, 3), (0, 0), (3, 3, 1)])


@fuzz(st.fixed_dictionaries({name: st.none() | st.tuples(KINDS, SHAPES) for name in STATISTICS}))
def test_statistics_of_other_kinds_and_shapes(case: dict, tmp_path: Path) -> None:
    kept = {name: np.ones(how[1]).astype(how[0]) if how else STATISTICS[name] for name, how in case.items()}
    (tmp_path / "a.npz").write_bytes(arrays(**kept))
    load_statistics(tmp_path / "a.npz")
