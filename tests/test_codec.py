"""Images to the denoiser's space and back."""

import pytest
import tiny
import torch
from torch import Tensor

from fastgen.models.codec import PixelCodec, VAECodec, codec_of


def smooth(count: int = 2, size: int = 16) -> Tensor:
    """Coloured ramps in [-1, 1]."""
    ramp = torch.linspace(-0.9, 0.9, size)
    picture = torch.stack([ramp.expand(size, size), ramp.expand(size, size).T, (ramp[:, None] * ramp).sin()])
    return torch.stack([picture * (1 - 0.3 * i) for i in range(count)])


@pytest.mark.parametrize("shift", [None, 0.1])
def test_latents_are_the_autoencoders_shifted_then_scaled(shift: float | None):
    vae = tiny.autoencoder(shift_factor=shift)
    with torch.no_grad():
        mean = vae.encode(smooth()).latent_dist.mean
    expected = (mean - (shift or 0.0)) * vae.config.scaling_factor
    torch.testing.assert_close(VAECodec(vae).encode(smooth()), expected)


@pytest.mark.parametrize("shift", [None, 0.1])
def test_a_round_trip_is_the_autoencoders_own(shift: float | None):
    vae = tiny.autoencoder(shift_factor=shift)
    codec = VAECodec(vae)
    with torch.no_grad():
        expected = vae.decode(vae.encode(smooth()).latent_dist.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(codec.encode(smooth())), expected, rtol=1e-4, atol=1e-5)


def test_latents_decode_to_the_stock_pipelines_images():
    pipe = tiny.stable_diffusion()
    call = {"prompt": ["a", "b"], "num_inference_steps": 2}
    latents, images = (
        pipe(**call, output_type=kind, generator=torch.Generator().manual_seed(0)).images for kind in ("latent", "pt")
    )
    torch.testing.assert_close(codec_of(pipe).decode(latents) / 2 + 0.5, images)


def test_the_autoencoder_is_frozen_and_gives_no_graph():
    codec = VAECodec(tiny.autoencoder().train())
    assert not codec.vae.training
    assert not any(parameter.requires_grad for parameter in codec.vae.parameters())
    latents = codec.encode(smooth().requires_grad_())
    assert not latents.requires_grad
    assert not codec.decode(latents.requires_grad_()).requires_grad


def test_a_low_precision_autoencoder_still_speaks_float32():
    codec = VAECodec(tiny.autoencoder().to(torch.bfloat16))
    latents = codec.encode(smooth())
    assert latents.dtype == codec.decode(latents).dtype == torch.float32


def test_pixels_are_left_as_they_are_and_clamped_at_the_end():
    codec = codec_of(tiny.ddpm())
    assert isinstance(codec, PixelCodec)
    images = smooth()
    assert torch.equal(codec.encode(images), images)
    assert torch.equal(codec.decode(images), images)
    assert codec.decode(torch.tensor([-3.0, 0.2, 5.0])).tolist() == pytest.approx([-1.0, 0.2, 1.0])
