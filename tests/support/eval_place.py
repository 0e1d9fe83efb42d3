"""A place with all that an evaluation needs, small, and the command run there."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny
import torch
from encoded import encoded, noise_image, save
from transformers import ResNetConfig, ResNetForImageClassification

from fastgen.cli import main
from fastgen.models.pipelines.notes import Notes

COUNT = 24
EXTRACTOR_OPTIONS = ["--extractor-size", "16", "--extractor-range", "-1", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student/ and teacher/ (16 px, ten classes), real/ and labelled.parquet, extractor/ of ten classes."""
    folder = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("student", "teacher")):
        tiny.class_conditional(size=16, seed=seed).save_pretrained(folder / name)
    Notes(steps=(1, 2), num_classes=10, null_label=10).write(folder / "student")
    contents = [encoded(noise_image(seed, 16, 16)) for seed in range(30)]
    for seed, content in enumerate(contents):
        save(folder / "real" / f"{seed:02d}.png", content)
    columns = {"image": contents, "label": [seed % 10 for seed in range(30)]}
    parquet.write_table(pa.table(columns), folder / "labelled.parquet")
    save_extractor(folder / "extractor")
    save(folder / "words.txt", "cat\n")
    return folder


def save_extractor(folder: Path) -> None:
    """A classifier of ten classes with random weights."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=dict(enumerate("abcdefghij"))
    )
    ResNetForImageClassification(config).save_pretrained(folder)


def evaluate(place: Path, out: Path, *options: str, reference: str = "real") -> int:
    paths = ["--reference", str(place / reference), "--extractor", str(place / "extractor"), "--out", str(out)]
    return main(["eval", *paths, *EXTRACTOR_OPTIONS, "--num", str(COUNT), "--batch-size", "10", *options])


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "metrics.json").read_text())["rows"]


def value(row: dict, name: str) -> float:
    return row["metrics"][name]["value"]
