"""Pictures that are no squares, end to end: a small SDXL on buckets, and one of a single tall shape."""

import json

import families_image
import pytest
import small_run
import torch
from encoded import encoded, noise_image, save
from isolated import HERE
from safetensors.torch import load_file

from fastgen.config.schema import Config
from fastgen.data import Loader
from fastgen.distillation.checks import check_stages
from fastgen.distillation.distil import distil
from fastgen.distillation.preflight import refusals
from fastgen.distillation.prompts import drawn_by_size
from fastgen.distillation.teacher import teacher_of
from fastgen.engine.feed import Feed
from fastgen.engine.loading import loader_of
from fastgen.errors import UserError
from fastgen.objectives import Needs

CPU = torch.device("cpu")
SIZES = ((16, 16), (24, 8), (8, 24))  # width and height; the small autoencoder halves them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    families_image.sdxl().save_pretrained(folder / "teacher")
    for number in range(18):
        save(folder / f"images/{number:02d}.png", encoded(noise_image(number, *SIZES[number % 3])))
        save(folder / f"images/{number:02d}.txt", f"prompt {number}")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr("fastgen.export.verify.subprocess", HERE)


def config(folder, out, *, data=None, **changes) -> Config:
    train = {"images": 8, "batch": 4, "micro_batch": 2, "optim": {"eps": 1e-3, "lr": 1e-3}}
    images = {"source": "folder", "path": str(folder / "images"), "size": 16, **(data or {})}
    settings = {
        "out": folder / out,
        "cache": str(folder / "cache"),
        "student": {"steps": [2], "height": 16, "width": 16},
        "data": images,
        "stages": [{"objective": {"name": "dmd2", "ratio": 1}, "train": train}],
        "checkpoints": {"every": 4},
        "log": {"previews": 1},
    }
    return small_run.run_config(folder, **{**settings, **changes})


def buckets(**others):
    return {"buckets": {"step": 8, "ratio": 3.0}, **others}


def test_every_bucket_is_told_what_the_pipeline_tells_at_its_size(folder):
    settings = config(folder, "unused", data=buckets())
    pipeline = teacher_of(settings, CPU)
    feed = Feed(pipeline, Loader(settings.data, seed=0, batch=2), CPU, Needs(images=True))
    seen = set()
    for start in range(0, 24, 2):
        streams = {"rng": torch.Generator(), "shared_rng": torch.Generator()}
        batch = feed.batch(start, 2, **streams)
        height, width = feed.loader.take(start, 2).size
        seen.add((height, width))
        told = batch.cond.kwargs["added_cond_kwargs"]["time_ids"]
        assert told.tolist() == [[height, width, 0, 0, height, width]] * 2
        assert batch.shape == batch.x0.shape[1:] == (4, height // 2, width // 2)
        assert batch.noise().shape == batch.x0.shape
        images = feed.loader.take(start, 2).images
        torch.testing.assert_close(batch.x0, pipeline.sized(height, width).codec.encode(images))
    assert len(seen) == 3


def test_networks_are_told_of_each_image_s_own_size_and_crop(folder, tmp_path):
    """As the field's trainers tell SDXL: the image as it was stored, and the crop in pixels of the image as resized."""
    shapes = {"32x16": (32, 16), "20x12": (20, 12), "16x40": (16, 40), "8x8": (8, 8)}  # width and height
    for number, (name, shape) in enumerate(shapes.items()):
        save(tmp_path / f"images/{name}.png", encoded(noise_image(number, *shape)))
        save(tmp_path / f"images/{name}.txt", name)
    wanted = {  # height, width, top, left; of squares of 16, and of the shapes that a step of 8 gives
        "32x16": ((16, 32, 0, 8), (16, 32, 2, 0)),
        "20x12": ((12, 20, 0, 5), (12, 20, 0, 5)),
        "16x40": ((40, 16, 12, 0), (40, 16, 0, 1)),
        "8x8": ((8, 8, 0, 0), (8, 8, 0, 0)),
    }
    for place, more in enumerate(({}, buckets())):
        settings = config(folder, "unused", data={"path": str(tmp_path / "images"), **more})
        pipeline = teacher_of(settings, CPU)
        loader = Loader(settings.data, seed=0, batch=1)
        needs = Needs(images=True, context="a {}", instead=(("x", "y"),))
        feed = Feed(pipeline, loader, CPU, needs, framing=pipeline.framing)
        for start in range(8):
            items = loader.take(start, 1)
            batch = feed.batch(start, 1, rng=torch.Generator(), shared_rng=torch.Generator())
            target = list(items.size or (16, 16))
            told = [*wanted[items.prompts[0]][place], *target]
            for cond in (batch.cond, batch.cond.null, batch.context, batch.taught):
                assert cond.kwargs["added_cond_kwargs"]["time_ids"].tolist() == [told]
    assert Feed(pipeline, loader, CPU, Needs(images=True)).batch(
        0, 1, rng=torch.Generator(), shared_rng=torch.Generator()
    ).cond.kwargs["added_cond_kwargs"]["time_ids"].tolist()[0][2:4] == [0, 0]


def test_a_size_is_decoded_as_the_stock_call_decodes_it(folder):
    pipeline = teacher_of(config(folder, "unused"), CPU)
    wide = pipeline.sized(8, 24)
    assert wide is pipeline.sized(8, 24)
    x0 = torch.randn((1, *wide.shape), generator=torch.Generator().manual_seed(0))
    vae = pipeline.pipe.vae
    with torch.no_grad():
        stock = vae.decode(x0 / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(wide.codec.decode(x0), stock, atol=1e-5, rtol=1e-5)
    assert pipeline.shape == (4, 8, 8)


def test_prompts_are_encoded_at_the_size_that_they_are_asked_for_at(folder):
    settings = config(folder, "unused", data=buckets())
    groups = drawn_by_size(settings)
    bucket, shapes = settings.data.bucket, settings.data.shapes
    loader = loader_of(settings, "data", batch=4)
    for start in range(0, 16, 4):
        items = loader.take(start, 4)
        assert set(items.prompts) <= set(groups[items.size])
    for size, texts in groups.items():
        if size is not None:
            assert all(shapes[bucket[int(text.split()[1])]] == size for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_a_student_of_buckets_is_exported_and_verified(folder, sharing, few_previews):
    settings = config(folder, f"run-{sharing}", data=buckets(), sharing=sharing, lora={"rank": 2})
    student = distil(settings, recipes=folder)
    notes = json.loads((student / "fastgen.json").read_text())
    assert notes["arguments"] == {"height": 16, "width": 16}
    assert list((settings.out / "previews").glob("*.png"))


@pytest.mark.slow
def test_a_run_of_buckets_goes_on_as_if_it_had_not_stopped(folder, few_previews):
    whole = distil(config(folder, "whole", data=buckets(), log={"previews": 0}), recipes=folder)
    short = config(folder, "parts", data=buckets(), log={"previews": 0})
    stage = short.stages[0]
    half = stage.model_copy(update={"train": stage.train.model_copy(update={"images": 4})})
    distil(short.model_copy(update={"stages": (half,)}), recipes=folder)
    parts = distil(short, recipes=folder, resume=True)
    name = "unet/diffusion_pytorch_model.safetensors"
    for key, value in load_file(whole / name).items():
        assert torch.equal(value, load_file(parts / name)[key])


@pytest.mark.slow
def test_one_tall_shape_needs_no_buckets(folder, few_previews):
    tall = {"steps": [2], "height": 24, "width": 8}
    student = distil(config(folder, "tall", data={"size": [24, 8]}, student=tall), recipes=folder)
    assert json.loads((student / "fastgen.json").read_text())["arguments"] == {"height": 24, "width": 8}


def test_what_holds_for_one_shape_alone_is_refused(folder):
    stages = [{"objective": {"name": "kd"}, "train": {"images": 8, "batch": 4}}]
    with pytest.raises(UserError, match="pairs, which are samples of one shape"):
        check_stages(config(folder, "unused", data=buckets(), stages=stages))


def test_a_bucket_that_the_pipeline_does_not_take_is_refused_before_anything_is_loaded(folder):
    settings = config(folder, "unused", data={"buckets": {"step": 4, "ratio": 2.0}})
    assert any("data.buckets" in reason for reason in refusals(settings, recipes=folder))
    settings = config(folder, "unused", data=buckets())
    assert not list(refusals(settings, recipes=folder))
