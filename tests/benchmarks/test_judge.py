"""The second CLIP model: its loss and augmentation, what it is said to read, and that eval opens what is saved."""

import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_clip import write_clip

from benchmarks import judge
from benchmarks.judge import Pairs, augmented, contrastive, read_of, retrieved
from eval.networks.clip import Clip


def test_the_loss_is_the_mean_of_both_directions_and_knows_no_length():
    seen, asked = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    to_text = (np.log(2) + np.log(2)) / 2  # texts are alike to both images
    to_image = (np.log(1 + np.exp(-4.0)) + np.log(1 + np.exp(4.0))) / 2  # both texts are the first image's
    assert contrastive(seen, asked, torch.tensor(4.0)).item() == pytest.approx((to_text + to_image) / 2, rel=1e-5)


def test_retrieval_is_counted_among_a_hundred_each_way():
    seen = torch.eye(200)
    assert retrieved(seen, seen) == {"image_to_text": 1, "text_to_image": 1}
    asked = seen.clone()
    asked[0] = 0.6 * seen[0] + 0.8 * seen[1]  # still the nearest text of the first image, which is not its nearest
    assert retrieved(seen, asked) == {"image_to_text": 1, "text_to_image": pytest.approx(1 - 1 / 200)}
    apart = torch.cat([seen[:100], seen[:100]])  # alike, but in different hundreds
    assert retrieved(apart, apart)["image_to_text"] == 1
    assert retrieved(seen[:3], seen[:3].roll(1, 0)) == {"image_to_text": 0, "text_to_image": 0}


def test_augmentation_moves_and_lights_a_picture_and_leaves_its_hue():
    torch.manual_seed(0)
    red = torch.tensor([0.4, -0.4, -0.4])[:, None, None].expand(3, 16, 16)
    lit = augmented(red.expand(32, 3, 16, 16))
    assert torch.allclose(lit[:, 1], lit[:, 2], atol=1e-5)
    assert (lit[:, 0] > lit[:, 1]).all()
    assert lit.mean(dim=(2, 3)).std(dim=0).min() > 0.05
    left = torch.full((64, 3, 16, 16), -1.0)
    left[..., :8] = 1.0
    brighter = augmented(left)
    mirrored = (brighter[..., :4].mean(dim=(1, 2, 3)) < brighter[..., -4:].mean(dim=(1, 2, 3))).float().mean()
    assert 0.25 < mirrored < 0.75
    assert brighter.abs().max() <= 1


def encoded(shade: int) -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 255 - shade, 80)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}


class Knows:
    """Embeds picture i and the caption "i" alike."""

    def __call__(self, images):
        assert images.dtype == torch.uint8
        return torch.eye(len(images))

    def text(self, prompts):
        return torch.eye(len(prompts))[[int(prompt) for prompt in prompts]]

    def alignment(self, embeddings, prompts):
        return torch.cosine_similarity(embeddings, self.text(prompts))


def test_a_score_stands_beside_that_of_other_captions():
    kept = Pairs(torch.zeros(3, 3, 4, 4), ["0", "1", "2"], torch.zeros(3, 1))
    told = {"image_to_text": 1, "text_to_image": 1, "clip_score": 100, "clip_score_of_other_captions": 0}
    assert read_of(Knows(), kept) == told


def test_what_is_saved_is_a_trained_clip_model_for_eval(tmp_path, monkeypatch):
    write_clip(tmp_path / "extractors/emoji_clip")
    (tmp_path / "data/emoji").mkdir(parents=True)
    table = {"image": [encoded(6 * i) for i in range(40)], "caption": [f"thing {i}, kind" for i in range(40)]}
    pq.write_table(pa.table(table), tmp_path / "data/emoji/train.parquet")
    ticks = itertools.count()
    monkeypatch.setattr(judge, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    small = ["--seconds", "6", "--batch", "8", "--width", "8", "--patch", "16", "--rate", "0.01", "--device", "cpu"]
    found = judge.main(["--assets", str(tmp_path), "--out", str(tmp_path / "judge"), *small])
    assert found == json.loads((tmp_path / "judge/judge.json").read_text())
    assert (found["pairs"], found["updates"]) == ({"trained": 36, "held_out": 4}, 5)
    saved = Clip(tmp_path / "judge", device="cpu")
    config = saved._model.config
    assert (config.vision_config.patch_size, config.vision_config.hidden_size, saved.dim) == (16, 8, 12)
    assert abs(saved._model.logit_scale.item() - config.logit_scale_init_value) > 0.01
