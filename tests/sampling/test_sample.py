"""Drawing from stock pipelines: seeds, batches, classes, guidance, and what is refused."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fastgen.cli import main
from fastgen.errors import UserError
from fastgen.models.pipelines import arguments, loading
from fastgen.models.pipelines.arguments import guidance_argument
from fastgen.models.pipelines.notes import Notes
from fastgen.sampling import stock
from fastgen.sampling.order import sample

BUILDERS = {
    "ddpm": tiny.ddpm,
    "classes": tiny.class_conditional,
    "consistency": tiny.consistency,
    "dit": tiny.dit,
    "text": tiny.stable_diffusion,
    "flux": tiny.flux,
}
ASKED = {
    "classes": {"labels": [0, 3, 5, 9, 9]},
    "dit": {"labels": [0, 3, 5, 999, 9]},
    "text": {"prompts": ["a", "fox", "b", "c", "owl"]},
    "flux": {"prompts": ["a", "fox", "b", "c", "owl"], "arguments": {"height": 16, "width": 16}},
}


def draw(pipe, **arguments):
    return torch.cat([batch.images for batch in stock.generate(pipe, progress=False, **arguments)])


@pytest.mark.parametrize("name", BUILDERS)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(name):
    pipe, asked = BUILDERS[name](), ASKED.get(name, {})
    images = draw(pipe, seeds=[3, 4, 5, 6, 7], steps=3, batch_size=5, **asked)
    assert images.dtype == torch.float32
    assert images.shape[0] == 5
    assert images.min() >= 0
    assert images.max() <= 1
    parts = draw(pipe, seeds=[3, 4, 5, 6, 7], steps=3, batch_size=2, **asked)
    torch.testing.assert_close(parts, images, atol=1e-5, rtol=0)
    others = draw(pipe, seeds=[13, 14, 15, 16, 17], steps=3, batch_size=5, **asked)
    assert (others - images).abs().flatten(1).mean(1).min() > 1e-3


def test_global_noise_is_repeatable_and_left_as_it_was():
    pipe = tiny.flux()  # Flux keeps the generator from its scheduler
    pipe.scheduler.register_to_config(stochastic_sampling=True)
    before = torch.get_rng_state()
    images = draw(pipe, seeds=[1], steps=3, prompts=["fox"], arguments={"height": 16, "width": 16})
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = draw(pipe, seeds=[1], steps=3, prompts=["fox"], arguments={"height": 16, "width": 16})
    torch.testing.assert_close(again, images, atol=1e-6, rtol=0)


def test_a_plain_call_of_diffusers_makes_the_same_images(tmp_path):
    folder = tmp_path / "classes"
    tiny.class_conditional().save_pretrained(folder)
    asked = {"batch_size": 3, "class_labels": [0, 7, 0], "num_inference_steps": 4, "output_type": "np"}
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    expected = DiffusionPipeline.from_pretrained(folder)(**asked, generator=seeds).images

    pipe = loading.load(folder, device="cpu")
    ours = draw(pipe, seeds=[5, 6, 7], steps=4, labels=[0, 7, 0], batch_size=2)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)

    out = tmp_path / "out"
    asked = ["--labels", "0,7", "--num", "3", "--steps", "4", "--seed", "5", "--device", "cpu"]
    assert main(["sample", "--student", str(folder), *asked, "--out", str(out)]) == 0
    for index, image in enumerate(expected):
        written = np.asarray(Image.open(out / f"{index:05d}.png")).astype(np.float64)
        assert np.abs(written - 255 * image).max() <= 0.5 + 255e-5


def test_kinds_and_real_classes():
    assert [arguments.conditioning_kind(build()) for build in BUILDERS.values()] == [
        *("none", "label", "none", "label", "prompt", "prompt")
    ]
    assert arguments.real_classes(tiny.class_conditional(), None) == range(10)
    assert arguments.real_classes(tiny.consistency(num_class_embeds=10), None) == range(10)
    assert arguments.real_classes(tiny.consistency(num_class_embeds=1), None) == range(1)
    assert arguments.real_classes(tiny.dit(), None) == range(1000)
    assert not arguments.real_classes(tiny.ddpm(), None)
    assert arguments.real_classes(tiny.class_conditional(), Notes(steps=(1,), num_classes=11)) == range(11)


def test_guidance_follows_the_diffusers_convention():
    pipe = tiny.stable_diffusion()
    generator = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(["fox"], guidance_scale=3.0, num_inference_steps=2, generator=generator, output_type="pt")
    ours = draw(pipe, seeds=[0], prompts=["fox"], arguments=guidance_argument(pipe, 3.0), steps=2)
    torch.testing.assert_close(ours, plain.images, atol=1e-5, rtol=0)

    class ZImagePipeline:
        components: dict[str, object] = {}  # noqa: RUF012

        def __call__(self, prompt, guidance_scale=5.0): ...

    assert guidance_argument(ZImagePipeline(), 1.0) == {"guidance_scale": 0.0}
    assert guidance_argument(tiny.flux(), 3.5) == {"guidance_scale": 3.5}
    assert guidance_argument(tiny.flux(guidance_embeds=False), 2.0) == {"true_cfg_scale": 2.0}
    assert guidance_argument(tiny.ddpm(), 1.0) == {}


def test_true_guidance_gets_the_negative_prompt_that_switches_it_on():
    pipe = tiny.flux(guidance_embeds=False)
    asked = {"seeds": [0], "prompts": ["fox"], "steps": 1}
    size = {"height": 16, "width": 16}
    guided = draw(pipe, arguments=size | guidance_argument(pipe, 6.0), **asked)
    assert (guided - draw(pipe, arguments=size, **asked)).abs().max() > 1e-3


def test_arguments_are_checked_before_anything_is_drawn():
    with pytest.raises(UserError, match="3 seeds, but 2 values of prompt"):
        stock.generate(tiny.stable_diffusion(), seeds=[1, 2, 3], prompts=["a", "b"])
    with pytest.raises(UserError, match="DDPMPipeline takes no height"):
        stock.generate(tiny.ddpm(), seeds=[1], arguments={"height": 8})
    with pytest.raises(UserError, match="label 11 is out of range"):
        stock.generate(tiny.class_conditional(), seeds=[1], labels=[11])
    with pytest.raises(UserError, match="got none"):
        stock.generate(tiny.class_conditional(), seeds=[1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": "a fox"}, "prompts is one text, 'a fox': give a list"),
        ({"prompts": []}, "prompts is empty"),
        ({"labels": torch.tensor([])}, "labels is empty"),
        ({"num": 0}, "the number of images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"height": -8}, "height is -8"),
        ({"guidance": float("nan")}, "guidance is nan"),
    ],
)
def test_what_nothing_can_be_drawn_by_is_refused_before_anything_is_loaded(asked, said):
    with pytest.raises(UserError, match=said):
        sample("nowhere", **asked)


def test_pixels_that_are_not_finite_are_refused():
    pipe = tiny.ddpm()
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite for the seeds"):
        draw(pipe, seeds=[1], steps=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_is_the_same_noise_on_the_gpu():
    images = draw(tiny.ddpm(), seeds=[3, 4], steps=3)
    pipe = tiny.ddpm().to("cuda")
    before = torch.cuda.get_rng_state()
    torch.testing.assert_close(draw(pipe, seeds=[3, 4], steps=3), images, atol=1e-2, rtol=0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_cifar10_teacher(assets):
    pipe = loading.load(assets / "teachers" / "cifar10", device="cpu")
    assert arguments.real_classes(pipe, None) == range(10)
    images = draw(pipe, seeds=[0, 1], steps=2, labels=[1, 7], batch_size=2)
    assert images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(draw(pipe, seeds=[1], steps=2, labels=[7]), images[1:], atol=1e-5, rtol=0)
