"""A style's classifier and what it counts; that a LoRA of a style is trained and merged into a pipeline."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from families import FAMILIES
from PIL import Image

from benchmarks.styles.__main__ import main
from benchmarks.styles.judge import Classifier, style_of
from fastgen.data.parquet import ParquetImages

COLOURS = {"warm": (220, 60, 40), "cold": (40, 60, 220)}


def picture(style: str, shade: int = 0) -> Image.Image:
    return Image.new("RGB", (16, 16), tuple(min(255, level + shade) for level in COLOURS[style]))


def encoded(image: Image.Image) -> dict[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}


@pytest.fixture
def assets(tmp_path):
    """Twenty emoji in two styles, where assets are."""
    rows = [(f"thing {i}", style, i) for i in range(10) for style in COLOURS]
    table = {
        "image": [encoded(picture(style, i)) for _, style, i in rows],
        "caption": [f"{name}, {style}" for name, style, _ in rows],
        "name": [name for name, _, _ in rows],
        "style": [style for _, style, _ in rows],
    }
    (tmp_path / "data/emoji").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "data/emoji/train.parquet")
    return tmp_path


def test_the_share_is_of_the_samples_that_are_read_as_what_was_asked(assets, tmp_path):
    table = pq.read_table(assets / "data/emoji/train.parquet")
    images = ParquetImages(assets / "data/emoji/train.parquet", 16)
    names, styles = table["name"].to_pylist(), table["style"].to_pylist()
    classifier = Classifier.trained(images, names, styles, lambda batch: batch.float().mean(dim=(2, 3)))
    assert classifier.accuracy == 1
    drawn = ["warm", "cold", "cold", "cold"]
    for i, style in enumerate(drawn):
        picture(style, 5).save(tmp_path / f"{i}.png")
    (tmp_path / "samples.json").write_text(json.dumps({"images": [{"file": f"{i}.png"} for i in range(4)]}))
    assert classifier.share(tmp_path, ["warm"] * 4) == 0.25
    assert classifier.share(tmp_path, drawn) == 1


def test_the_style_is_taught_on_names_alone(assets, tmp_path):
    main(["prepare", "--out", str(tmp_path / "out"), "--assets", str(assets), "--style", "warm"])
    own = pq.read_table(tmp_path / "out/style.parquet")
    assert own["caption"].to_pylist() == [f"thing {i}" for i in range(10)]
    assert (tmp_path / "out/names.txt").read_text().splitlines() == own["caption"].to_pylist()
    assert {style_of(line) for line in (tmp_path / "out/others.txt").read_text().splitlines()} == {"cold"}


@pytest.mark.slow  # half a minute: three pipelines are loaded and two written
def test_a_style_changes_what_the_pipeline_draws(assets, tmp_path):
    out, base = tmp_path / "out", tmp_path / "base"
    pipe = FAMILIES["stable_diffusion"].build()
    pipe.save_pretrained(base)
    common = ["--out", str(out), "--assets", str(assets)]
    main(["prepare", *common, "--style", "warm"])
    small = ["--steps", "4", "--batch", "4", "--rank", "2", "--size", "16", "--device", "cpu", "--rate", "0.1"]
    main(["finetune", *common, "--base", str(base), "--name", "style", *small])
    (base / "fastgen.json").write_text("{}")
    main(["fuse", *common, "--base", str(base), "--lora", str(out / "style"), "--name", "tuned"])
    without, half = ["--scale", "0"], ["--scale", "down=0", "mid=0"]
    for name, scale in {"none": without, "up": half}.items():
        main(["fuse", *common, "--base", str(base), "--lora", str(out / "style"), "--name", name, *scale])
    first, *others = (
        one("a", num_inference_steps=2, height=16, width=16, output_type="np", generator=torch.manual_seed(0)).images
        for one in (pipe, *(type(pipe).from_pretrained(out / name) for name in ("tuned", "none", "up")))
    )
    tuned, none, upper = (np.abs(first - one).max() for one in others)
    assert tuned > 1e-3
    assert none == 0, "a LoRA of scale 0 changes nothing"
    assert upper not in (0, tuned), "of some blocks alone it changes something else"
    assert (out / "tuned/fastgen.json").is_file()
