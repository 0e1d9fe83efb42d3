"""The examples of the Python API's page run as they stand there, one after the other."""

import re
from pathlib import Path

import pytest
import tiny
import torch
from encoded import encoded, noise_image, save
from transformers import ResNetConfig, ResNetForImageClassification

ROOT = Path(__file__).parents[2]
MINE = """\
out: runs/mine
device: cpu
teacher: {path: my-teacher}
data: {source: noise, num_classes: 10}
objective: {name: dmd2, gan: 0, ratio: 1}
train: {images: 8, batch: 8}
log: {trackers: [], previews: 0}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page names: mine.yaml, my-teacher, real images, my-extractor."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    tiny.class_conditional(size=16).save_pretrained("my-teacher")
    for seed in range(30):
        save(tmp_path / "real" / f"{seed:02d}.png", encoded(noise_image(seed, 16, 16)))
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained("my-extractor")
    return tmp_path


@pytest.mark.usefixtures("verified_here")
def test_the_examples_of_the_python_api_run(place: Path):
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert len(blocks) == 6
    assert names["stage"].position.images == 16
    assert {row.role for row in names["report"].rows} == {"real", "teacher", "student"}
    assert names["images"].shape == (10, 3, 16, 16)
    assert [agreement.steps for agreement in names["agreements"]] == [2]
    for folder in ("runs/mine/student", "runs/own/student"):
        assert (place / folder / "model_index.json").is_file()
