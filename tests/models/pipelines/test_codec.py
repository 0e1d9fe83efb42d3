"""Images and videos to the denoiser's space and back, as each stock pipeline has it."""

from functools import cache, wraps
from typing import Any

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline
from families import FAMILIES, awaken
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.pipelines.arguments import classifier_free, conditioning_kind
from fastgen.models.pipelines.codec import IMAGES_AT_ONCE, LatentCodec, PixelCodec, codec_of

PIXELS = ("ddpm", "consistency")
every_family = pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PIXELS])


@cache
def built(name: str) -> tuple[DiffusionPipeline, LatentCodec]:
    pipe = FAMILIES[name].build()
    codec = codec_of(pipe, FAMILIES[name].size)
    assert isinstance(codec, LatentCodec)
    return pipe, codec


def stock(pipe: DiffusionPipeline, size: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The last sample of a stock call for two conditions, and what its autoencoder makes of that."""
    steps: list[Any] = []
    images: list[Tensor] = []
    step, decode = pipe.scheduler.step, pipe.vae.decode

    @wraps(step)
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        steps.append(step(*args, **kwargs))
        return steps[-1]

    def watched_decode(*args: Any, **kwargs: Any) -> Any:
        images.append(decode(*args, **kwargs))
        return images[-1]

    monkeypatch.setattr(pipe.scheduler, "step", watched_step)
    monkeypatch.setattr(pipe.vae, "decode", watched_decode)
    asked = {"label": {"class_labels": [3, 8]}, "prompt": {"prompt": ["a red fox", "two"]}}[conditioning_kind(pipe)]
    pipe(**asked, **size, **classifier_free(pipe, 1.0), num_inference_steps=2, output_type="pt")
    (decoded,) = images
    sigma_data = pipe.scheduler.config.get("sigma_data")
    last = steps[-1][0] if sigma_data is None else steps[-1][1] / sigma_data
    return last, decoded[0] if isinstance(decoded, tuple) else decoded.sample


def smooth(*shape: int) -> Tensor:
    """Slow waves in [-1, 1], other ones in each sample, channel and frame."""
    grids = torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")
    return 0.9 * torch.sin(sum((0.7 + i / 5) * grid for i, grid in enumerate(grids)) / 3)


@every_family
def test_samples_decode_to_what_the_stock_call_decodes(name: str, monkeypatch: pytest.MonkeyPatch):
    pipe, codec = built(name)
    sample, expected = stock(pipe, FAMILIES[name].size, monkeypatch)
    ours = codec.decode(sample)
    if ours.ndim == 5 and expected.ndim == 4:  # an autoencoder of images, given the frames one after another
        expected = expected.unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(ours, expected.reshape(ours.shape).clamp(-1, 1), rtol=1e-4, atol=1e-4)  # of [-1, 1]


@every_family
def test_encoding_undoes_the_wiring_of_decoding(name: str):
    _, codec = built(name)
    x0 = torch.randn(3, *codec.shape)
    z = codec.wiring.to_latents(x0)
    assert float((z.flatten() - x0.flatten()).abs().max()) > 0.1
    torch.testing.assert_close(codec.wiring.to_samples(z, codec.shape), x0, rtol=1e-5, atol=1e-5)


@every_family
def test_what_is_encoded_decodes_as_the_autoencoder_alone_would(name: str):
    _, codec = built(name)
    images = smooth(*codec.decode(torch.randn(2, *codec.shape)).shape)
    samples = codec.encode(images)
    assert samples.shape == (2, *codec.shape)
    vae, frames = codec.vae, images.shape[2] if images.ndim == 5 else 1
    with torch.no_grad():
        if len(codec.wiring.latents) == 5:
            alone = vae.encode(images if images.ndim == 5 else images[:, :, None])
        else:
            folded = images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images
            alone = vae.encode(folded)
        z = alone.latent if name.startswith("sana") else alone.latent_dist.mean
        expected = vae.decode(z, return_dict=False)[0].clamp(-1, 1)
    if codec.wiring.latents[0] > 1:
        expected = expected.unflatten(0, (2, frames)).transpose(1, 2)
    torch.testing.assert_close(codec.decode(samples), expected.reshape(images.shape), rtol=1e-3, atol=1e-4)


def test_flux_trains_on_shifted_scaled_and_packed_latents():
    pipe, codec = built("flux")
    images = smooth(2, 3, 16, 16)
    with torch.no_grad():
        mean = pipe.vae.encode(images).latent_dist.mean
    normal = (mean - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(codec.encode(images), FluxPipeline._pack_latents(normal, 2, 4, 8, 8))


def test_wan_trains_on_latents_of_mean_0_and_deviation_1_in_every_channel():
    pipe, codec = built("wan")
    videos = smooth(2, 3, 5, 16, 16)
    with torch.no_grad():
        z = pipe.vae.encode(videos).latent_dist.mean
    mean, std = (torch.tensor(pipe.vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(codec.encode(videos), (z - mean) / std, rtol=1e-5, atol=1e-5)


def test_flux2_trains_on_patches_normalised_by_the_running_statistics():
    pipe, codec = built("flux2")
    images = smooth(2, 3, 16, 16)
    with torch.no_grad():
        patches = pipe._patchify_latents(pipe.vae.encode(images).latent_dist.mean)
    bn = pipe.vae.bn
    std = (bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    expected = pipe._pack_latents((patches - bn.running_mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))
    torch.testing.assert_close(codec.encode(images), expected, rtol=1e-5, atol=1e-5)


class Bent(DiffusionPipeline):
    """Decodes its sample slightly bent."""

    def __init__(self, unet: Any, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    def bend(self, latents: Tensor) -> Tensor:
        return latents + 0.01 * latents.sin()

    def __call__(self, num_inference_steps: int = 2) -> Tensor:
        latents = torch.randn(1, 4, 8, 8)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.unet(latents, t).sample, t, latents).prev_sample
        return self.vae.decode(self.bend(latents)).sample


class Cropping(Bent):
    """Decodes a part of its sample."""

    def bend(self, latents: Tensor) -> Tensor:
        return latents[..., 1:, :]


class Blank(Bent):
    """Decodes nothing of its sample's first channel."""

    def bend(self, latents: Tensor) -> Tensor:
        return latents * torch.tensor([0.0, 1, 1, 1]).view(4, 1, 1)


class Chunked(Bent):
    """Decodes some rows at a time."""

    def __call__(self, num_inference_steps: int = 2, decode_chunk_size: int = 4) -> Tensor:
        self.bend = lambda latents: latents[..., :decode_chunk_size, :]
        return super().__call__(num_inference_steps)


def test_a_pipeline_that_decodes_in_chunks_is_asked_for_one():
    codec = codec_of(Chunked(tiny.unet(channels=4), tiny.autoencoder(), DDPMScheduler()))
    assert isinstance(codec, LatentCodec)
    assert codec.wiring.latents == (1, 4, 8, 8)


REFUSED = {Bent: "differs by 0.", Cropping: "224 of a sample's 256", Blank: "64 of its 256 latents do not depend"}


@pytest.mark.parametrize(("kind", "measured"), REFUSED.items())
def test_a_decode_that_does_more_than_rearrange_and_scale_is_refused(kind: type[Bent], measured: str):
    pipe = kind(tiny.unet(channels=4), tiny.autoencoder(), DDPMScheduler())
    with pytest.raises(UserError, match=f"{kind.__name__} cannot be trained with images.*{measured}"):
        codec_of(pipe)


def test_images_of_another_size_than_the_teachers_are_refused():
    _, codec = built("flux")
    with pytest.raises(UserError, match="bring the data to the size"):
        codec.encode(smooth(2, 3, 32, 32))


def test_looking_leaves_the_pipeline_and_the_random_stream_alone():
    pipe = FAMILIES["flux2"].build()
    pipe.vae.to(torch.bfloat16)
    pipe.set_progress_bar_config(leave=False)
    before = {name: (value.data_ptr(), value.dtype) for name, value in pipe.vae.state_dict().items()}
    torch.manual_seed(1)
    state, bar = torch.get_rng_state(), dict(pipe._progress_bar_config)
    codec_of(pipe, FAMILIES["flux2"].size)
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe._progress_bar_config == bar
    assert {name: (value.data_ptr(), value.dtype) for name, value in pipe.vae.state_dict().items()} == before
    for part, method in ((pipe.vae, "decode"), (pipe.transformer, "forward"), (pipe.scheduler, "step")):
        assert method not in vars(part)


def test_looking_leaves_the_callers_prompts_alone():
    family, prompts = FAMILIES["z_image"], ["a"]
    codec_of(family.build(), {"prompt": prompts, **family.size})
    assert prompts == ["a"]


def test_an_autoencoder_that_is_told_a_time_is_told_the_pipelines(monkeypatch: pytest.MonkeyPatch):
    family = FAMILIES["ltx"]
    pipe = family.build()
    told = type(pipe.vae).from_config(pipe.vae.config, timestep_conditioning=True, decoder_block_out_channels=(8, 8))
    awaken(told)
    pipe.register_modules(vae=told)
    codec = codec_of(pipe, family.size)
    sample, expected = stock(pipe, family.size, monkeypatch)
    torch.testing.assert_close(codec.decode(sample), expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "flux2", "ltx"])
def test_a_pipeline_in_bfloat16_is_wired_as_in_float32(name: str):
    low = codec_of(FAMILIES[name].build().to(torch.bfloat16), FAMILIES[name].size).wiring
    full = built(name)[1].wiring
    assert torch.equal(low.source, full.source)
    torch.testing.assert_close(low.scale, full.scale, rtol=0.02, atol=0.02)
    torch.testing.assert_close(low.shift, full.shift, rtol=0.02, atol=0.02)


def test_the_autoencoder_is_frozen_and_gives_no_graph():
    _, codec = built("stable_diffusion")
    assert not any(parameter.requires_grad for parameter in codec.vae.parameters())
    latents = codec.encode(smooth(2, 3, 16, 16).requires_grad_())
    assert not latents.requires_grad
    assert not codec.decode(latents.requires_grad_()).requires_grad


def test_a_low_precision_autoencoder_still_speaks_float32():
    pipe = FAMILIES["z_image"].build()
    pipe.vae.to(torch.bfloat16)
    codec = codec_of(pipe, FAMILIES["z_image"].size)
    latents = codec.encode(smooth(2, 3, 16, 16))
    assert latents.dtype == codec.decode(latents).dtype == torch.float32
    torch.testing.assert_close(codec.wiring.scale, built("z_image")[1].wiring.scale)


def test_an_autoencoder_that_overflows_in_float16_is_lifted_to_float32():
    pipe = FAMILIES["sdxl"].build()
    pipe.vae.to(torch.float16)
    assert codec_of(pipe, FAMILIES["sdxl"].size).vae.dtype == torch.float32


def test_frames_before_colours_are_put_behind_them(monkeypatch: pytest.MonkeyPatch):
    pipe, codec = built("cogvideox")
    x = smooth(1, *codec.shape)
    whole, decode = codec.decode(x), pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: (decode(*a, **k)[0].transpose(1, 2),))
    assert whole.shape[1:3] == (3, 5)
    torch.testing.assert_close(codec.decode(x), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "most"), [("sd3", IMAGES_AT_ONCE), ("wan", 1)])
def test_many_samples_pass_the_autoencoder_a_few_at_a_time(name: str, most: int, monkeypatch: pytest.MonkeyPatch):
    _, codec = built(name)
    samples = torch.randn(IMAGES_AT_ONCE + 2, *codec.shape)
    alone = torch.cat([codec.decode(sample[None]) for sample in samples])
    given: list[int] = []
    decode = codec.vae.decode
    monkeypatch.setattr(codec.vae, "decode", lambda z, **kw: (given.append(len(z)), decode(z, **kw))[1])
    torch.testing.assert_close(codec.decode(samples), alone, rtol=1e-4, atol=1e-4)
    assert max(given) == most
    assert sum(given) == len(samples)


def test_pixels_are_left_as_they_are_and_clamped_at_the_end():
    codec = codec_of(tiny.ddpm())
    assert isinstance(codec, PixelCodec)
    images = smooth(2, 3, 8, 8)
    assert torch.equal(codec.encode(images), images)
    assert torch.equal(codec.decode(images), images)
    assert codec.decode(torch.tensor([-3.0, 0.2, 5.0])).tolist() == pytest.approx([-1.0, 0.2, 1.0])
