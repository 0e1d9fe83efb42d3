"""The discriminator of decoded samples: what it sees, whom it trains, what it is told."""

import shutil
from pathlib import Path

import pytest
import torch
from small_clip import write_clip
from small_vision import write_vision
from torch import Tensor, nn
from transformers import BitImageProcessor, CLIPVisionModel, Dinov2Model

from fastgen.errors import UserError
from fastgen.models.condition_embedding import ConditionEmbedding
from fastgen.models.conditioning import Conditioning
from fastgen.models.pipelines.vision import eyes
from fastgen.models.pixel_discriminator import PixelDiscriminator

CPU, T = torch.device("cpu"), torch.zeros(2, dtype=torch.float64)
CLASSES = Conditioning(2, {"class_labels": torch.tensor([3, -1])})


def corners(images: Tensor) -> list[Tensor]:
    """As a vision model of two blocks would: tokens of the rows, and of the columns."""
    assert images.shape[1] == 3
    return [images.mean(dim=2).transpose(1, 2), images.mean(dim=3).transpose(1, 2)]


def judge(cond: Conditioning = CLASSES, shape: tuple[int, ...] = (3, 4, 4)) -> PixelDiscriminator:
    found = PixelDiscriminator(lambda x: x, corners, (torch.zeros(2, *shape), T, cond))
    for head in found.heads:
        for layer in [head.logit] + [head.told] * (head.told is not None):
            nn.init.normal_(layer.weight)
    return found


def test_there_is_one_logit_per_block_zero_at_first_and_all_of_it_learns():
    fresh = PixelDiscriminator(lambda x: x, corners, (torch.zeros(2, 3, 4, 4), T, CLASSES))
    assert torch.equal(fresh(torch.randn(2, 3, 4, 4), T, CLASSES), torch.zeros(2, 2))
    found = judge()
    x0 = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = found(x0, T, CLASSES)
    (slope,) = torch.autograd.grad(logits[1].sum(), x0, retain_graph=True)
    assert slope[1].abs().sum() > 0
    assert slope[0].abs().sum() == 0
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_it_is_told_what_was_asked_for_and_not_the_time():
    found, x0 = judge(), torch.randn(1, 3, 4, 4).expand(2, -1, -1, -1)
    logits = found(x0, T, CLASSES)
    assert (logits[0] - logits[1]).abs().min() > 1e-3
    assert torch.equal(found(x0, T + 0.5, CLASSES), logits)
    nothing = judge(Conditioning(2))
    assert nothing.asked is None
    assert torch.equal(*nothing(x0, T, Conditioning(2)))


def test_texts_are_told_apart_but_not_by_what_pads_them():
    text = torch.randn(2, 5, 8)
    longer = torch.cat([text, torch.zeros(2, 4, 8)], dim=1)
    cond = Conditioning(2, {"encoder_hidden_states": text, "added": {"mask": torch.ones(2, 5)}})
    asked = ConditionEmbedding(cond, 6)
    one, other = (asked(Conditioning(2, {"encoder_hidden_states": x})) for x in (text, longer))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert (one[0] - one[1]).abs().max() > 0.1
    rows = Conditioning(2, {"texts": [text[0], text[1, :3]]})
    assert ConditionEmbedding(rows, 6)(rows).shape == (2, 6)


def test_grey_images_and_frames_of_videos_are_seen():
    grey = judge(shape=(1, 4, 4))
    assert grey(torch.randn(2, 1, 4, 4), T, CLASSES).shape == (2, 2)
    film, frames = judge(shape=(3, 2, 4, 4)), torch.randn(2, 3, 2, 4, 4)
    tokens = film.features(frames, T, CLASSES)[0]
    torch.testing.assert_close(tokens[1], torch.cat([corners(frames[1:, :, i])[0][0] for i in (0, 1)]))


# The vision models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision(tmp_path_factory.mktemp("dinov2"))


def test_it_sees_what_the_model_sees_of_its_processors_images(folder: Path):
    images = torch.rand(2, 3, 28, 28)
    said = BitImageProcessor.from_pretrained(folder)(images, do_resize=False, do_rescale=False, return_tensors="pt")
    with torch.no_grad():
        states = Dinov2Model.from_pretrained(folder)(**said, output_hidden_states=True).hidden_states
    for blocks, wanted in ((None, (1, 2, 3, 4)), ((2, 4), (2, 4))):
        seen = eyes(str(folder), blocks, CPU)(2 * images - 1)
        assert len(seen) == len(wanted)
        for tokens, block in zip(seen, wanted, strict=True):
            torch.testing.assert_close(tokens, states[block], rtol=1e-4, atol=1e-4)


def test_larger_images_are_seen_as_a_whole_with_the_graph_to_every_corner(folder: Path):
    images = torch.rand(1, 3, 40, 60, requires_grad=True)
    eyes(str(folder), None, CPU)(images)[3].square().sum().backward()
    assert all(images.grad[0, :, y, x].abs().sum() > 0 for y in (0, -1) for x in (0, -1))


def test_of_clip_the_vision_part_is_read(tmp_path: Path):
    folder, images = write_clip(tmp_path / "clip"), torch.rand(1, 3, 32, 32)
    (seen,) = eyes(str(folder), None, CPU)(2 * images - 1)
    mean, std = (
        torch.tensor(x)[:, None, None]
        for x in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    with torch.no_grad():
        model = CLIPVisionModel.from_pretrained(folder)
        states = model(pixel_values=(images - mean) / std, output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen, states[1], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_read_is_refused_in_words(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"blocks is \[9\], but the network has blocks 1 to 4"):
        eyes(str(folder), (9,), CPU)
    with pytest.raises(UserError, match="cannot load"):
        eyes(str(tmp_path), None, CPU)
    unsaid = tmp_path / "unsaid"
    shutil.copytree(folder, unsaid)
    (unsaid / "preprocessor_config.json").write_text('{"size": 28}')
    with pytest.raises(UserError, match=r"cannot load .*image_mean"):
        eyes(str(unsaid), None, CPU)
    copy = tmp_path / "without"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config"):
        eyes(str(copy), None, CPU)
