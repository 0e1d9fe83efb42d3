"""What keeps a run at 1024 px on a small GPU: large samples go through networks a few at a time."""

import pytest
import torch
from closed_forms import PLANE, streams
from diffusers import AutoencoderKL
from torch import Tensor

from fastgen.models import calls
from fastgen.models.calls import guided, look
from fastgen.models.pipelines.codec import IMAGES_AT_ONCE, MOST, LatentCodec
from fastgen.models.pipelines.wiring import Wiring
from fastgen.process import Flow
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.toy import toy_batch


def believed(rows: int, monkeypatch: pytest.MonkeyPatch, *, large: int) -> tuple[Tensor, list[int]]:
    """A guided belief about points of the plane, samples of `large` values being large, and the rows of its calls."""
    monkeypatch.setattr(calls, "LARGE", large)
    batch, called = toy_batch(PLANE, rows, *streams().values()), []

    def watched(model, x_t, t, cond, _scalars):
        called.append(len(x_t))
        return look(model, x_t, t, cond)

    belief = guided(watched, ExactDenoiser(Flow(), PLANE), batch.x0, batch.full(0.5), batch.cond, w=3.0)
    return belief.x0, called


def test_the_halves_of_guidance_go_together_unless_several_samples_are_large(monkeypatch):
    together, pair = believed(4, monkeypatch, large=3)
    apart, halves = believed(4, monkeypatch, large=2)
    assert (pair, halves) == ([8], [4, 4])
    torch.testing.assert_close(apart, together)
    assert believed(1, monkeypatch, large=2)[1] == [2], "one sample alone does not fill a GPU"


def codec(side: int) -> LatentCodec:
    """Latents of 4 channels and twice the pixels' spacing, as they are."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, mid_block_add_attention=False, **blocks)
    shape = torch.Size((4, side, side))
    wiring = Wiring(torch.Size((1, *shape)), torch.arange(shape.numel()), torch.ones(1), torch.zeros(1))
    return LatentCodec(vae, wiring, shape, {})


def seen_by(autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """How many images each of its calls is given, and whether cuDNN would try kernels out."""
    seen = []
    for name in ("encode", "decode"):
        stock = getattr(autoencoder, name)

        def watched(x: Tensor, stock=stock, **settings: bool):
            seen.append((len(x), torch.backends.cudnn.benchmark))
            return stock(x, **settings)

        monkeypatch.setattr(autoencoder, name, watched)
    return seen


@pytest.mark.parametrize("together", [IMAGES_AT_ONCE, 2, 1])
def test_the_larger_images_are_the_fewer_pass_the_autoencoder_together(together, monkeypatch):
    side = round((MOST / 4 / together) ** 0.5) // 8  # so small that the test is quick
    monkeypatch.setattr("fastgen.models.pipelines.codec.MOST", MOST // 64)
    ours, images = codec(side), torch.zeros(IMAGES_AT_ONCE, 3, 2 * side, 2 * side)
    seen = seen_by(ours.vae, monkeypatch)
    assert ours.decode(ours.encode(images)).shape == images.shape
    assert [rows for rows, _ in seen] == 2 * (IMAGES_AT_ONCE // together) * [together]


def test_kernels_are_not_tried_out_on_the_autoencoder(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    ours = codec(4)
    seen = seen_by(ours.vae, monkeypatch)
    ours.decode(ours.encode(torch.zeros(1, 3, 8, 8)))
    assert [tuned for _, tuned in seen] == [False, False]
    assert torch.backends.cudnn.benchmark
