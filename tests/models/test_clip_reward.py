"""CLIP as a reward: what `eval` measures, with a derivative by the image."""

from pathlib import Path

import pytest
import torch
from small_clip import write_clip
from transformers import CLIPImageProcessor, CLIPModel

from eval.networks.clip import Clip
from fastgen.errors import UserError
from fastgen.models.pipelines.clip_reward import ClipReward

CPU = torch.device("cpu")
PROMPTS = ["ab", "b", "ab"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("shape", [(32, 32), (40, 48), (24, 20)])
@pytest.mark.parametrize("shortest", [True, False])
def test_it_scores_as_the_report_does(folder: Path, tmp_path: Path, shape: tuple[int, int], shortest: bool):
    """Of any shape, whether the short side is brought to size and the middle cut out, or the image is squashed."""
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    size = {"shortest_edge": 32} if shortest else {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.randint(0, 256, (3, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    measured = Clip(tmp_path, device=CPU)
    expected = 100 * measured.alignment(measured(images), PROMPTS)
    pixels = (images / 255).requires_grad_()
    found = ClipReward(str(tmp_path)).load(CPU)(pixels, PROMPTS)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=0.1)  # pixels between were rounded
    found.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.any()


def test_a_step_along_the_derivative_is_a_better_picture(folder: Path):
    score = ClipReward(str(folder)).load(CPU)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = score(pixels, PROMPTS)
    (slope,) = torch.autograd.grad(before.sum(), pixels)
    assert (score(pixels + 0.02 * slope.sign(), PROMPTS) > before).all()


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"the reward clip cannot load .* give the folder of a transformers CLIPModel"):
        ClipReward(str(tmp_path)).load(CPU)
    score = ClipReward(str(folder)).load(CPU)
    with pytest.raises(UserError, match="cannot judge videos"):
        score(torch.rand(1, 3, 2, 32, 32), ["a"])
    with pytest.raises(UserError, match="reads prompts, and was given 0 for 1 images"):
        score(torch.rand(1, 3, 32, 32), [])
