"""`fastgen precompute`, and the run that reads what it made: without the images, an encoder's use, or other losses."""

import shutil

import families_image
import pytest
import small_run
from encoded import encoded, noise_image, save
from isolated import HERE

from fastgen.cli import main
from fastgen.config.yaml_file import dump
from fastgen.data.folder import ImageFolder
from fastgen.data.prompts import Noise
from fastgen.distillation.distil import ready
from fastgen.distillation.precompute import precompute
from fastgen.distillation.teacher import teacher_of
from fastgen.engine.latents import kept_images, recall
from fastgen.engine.materials import materials
from fastgen.errors import UserError
from fastgen.models.pipelines.codec import LatentCodec
from fastgen.models.pipelines.encoding import Encoder
from fastgen.objectives import VSD

SIZES = ((16, 16), (24, 8), (8, 24))  # width and height


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precompute")
    families_image.sdxl().save_pretrained(folder / "teacher")
    return folder / "teacher"


@pytest.fixture
def folder(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr("fastgen.export.verify.subprocess", HERE)
    (tmp_path / "teacher").symlink_to(teacher)
    for number in range(9):
        save(tmp_path / f"images/{number:02d}.png", encoded(noise_image(number, *SIZES[number % 3])))
        save(tmp_path / f"images/{number:02d}.txt", f"prompt {number}\nother {number}")
    return tmp_path


def config(folder, out="run", *, data=None, **changes):
    train = {"images": 12, "batch": 2, "optim": {"eps": 1e-3, "lr": 1e-3}}
    images = {"source": "folder", "path": str(folder / "images"), "size": 16, "text": "lines", **(data or {})}
    settings = {
        "out": folder / out,
        "cache": str(folder / "cache"),
        "student": {"steps": [2], "height": 16, "width": 16},
        "data": {**images, "buckets": {"step": 8, "ratio": 3.0}},
        "flip": True,
        "caption_dropout": 0.2,
        "stages": [{"objective": {"name": "dmd2", "ratio": 1, "gan": {}}, "train": train}],
    }
    return small_run.run_config(folder, **{**settings, **changes})


def losses(settings, *, cycles=3):
    """The figures of some cycles of a run that is made ready as `fastgen train` does, and its stage."""
    with ready(settings, recipes=settings.out.parent) as made:
        made.run._made_of = materials(settings)
        stage = made.run.stage(0, {})
        return [stage.cycle() for _ in range(cycles)], stage


def forbidden(*_, **__):
    raise AssertionError("nothing is encoded")


@pytest.mark.slow
def test_a_run_without_images_and_encoders_is_the_run_that_encodes(folder, monkeypatch):
    plain, stage = losses(config(folder, cache=None))
    assert stage.feed.kept is None
    made = precompute(config(folder), recipes=folder)
    assert made.fresh == made.images
    assert 9 < made.images <= 18  # mirrored ones are rows of their own
    contents = materials(config(folder))["data"]
    shutil.rmtree(folder / "images")
    shutil.rmtree(folder / "kept")
    with monkeypatch.context() as patched:
        patched.setattr(LatentCodec, "_encode", forbidden)
        patched.setattr(Encoder, "_encoded", forbidden)
        kept, stage = losses(config(folder, "other"))
    assert stage.feed.kept is not None
    for one, other in zip(kept, plain, strict=True):  # the autoencoder's kernels round by the size of a batch
        assert one == pytest.approx(other, rel=1e-5)
    recall(again := config(folder, "third"))
    assert materials(again)["data"] == contents
    with pytest.raises(UserError, match=r"draws \d+ images that are not at hand, and \d+ of them were not precomp"):
        losses(config(folder, "longer", seed=5))


def test_what_is_there_is_not_made_again_and_only_what_fits_is_used(folder, capsys):
    settings = config(folder, data={"text": "caption"}, flip=False)
    half = settings.model_copy(update={"stages": tuple(_of_images(stage, 4) for stage in settings.stages)})
    first = precompute(half, recipes=folder)
    (folder / "run.yaml").write_text(dump(settings))
    assert main(["precompute", str(folder / "run.yaml")]) == 0
    assert f"the samples of 9 images, {9 - first.images} of them made now" in capsys.readouterr().out
    assert precompute(settings, recipes=folder).fresh == 0
    pipeline = teacher_of(settings, small_run.CPU)
    assert used(settings, pipeline)
    assert not used(config(folder, flip=False, data={"text": "caption", "background": "black"}), pipeline)
    assert not used(config(folder, data={"text": "caption"}), pipeline)  # mirrored ones are not there
    save(folder / "images/00.png", encoded(noise_image(77, 16, 16)))
    assert not used(settings, pipeline)
    save(folder / "images/00.png", encoded(noise_image(0, 16, 16)))
    assert used(settings, pipeline)
    assert not used(settings, teacher_of(settings, small_run.CPU), changed=1e-3)


def test_a_run_of_any_length_asks_no_position_where_nothing_was_made(folder, monkeypatch):
    monkeypatch.setattr("fastgen.engine.latents.drawn_images", forbidden)
    settings = config(folder)
    long = settings.model_copy(update={"stages": tuple(_of_images(stage, 10**12) for stage in settings.stages)})
    assert not used(long, teacher_of(settings, small_run.CPU))


def used(settings, pipeline, *, changed=0.0):
    """Whether a run reads what was made before; of an autoencoder whose first weight is changed."""
    next(pipeline.pipe.vae.parameters()).data += changed
    contents = materials(settings)["data"]
    return kept_images(settings, settings.stages[0], pipeline, contents, say=print) is not None


def _of_images(stage, images):
    return stage.model_copy(update={"train": stage.train.model_copy(update={"images": images})})


def test_an_image_that_cannot_be_read_and_a_missing_folder_are_refused(folder):
    (folder / "images/03.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"03\.png cannot be read, and what is precomputed has no other in its place"):
        precompute(config(folder), recipes=folder)
    with pytest.raises(UserError, match="cache is null"):
        precompute(config(folder, cache=None), recipes=folder)


def test_images_of_another_size_are_others_though_their_samples_have_the_same_shape(folder):
    settings = config(folder, flip=False)
    nearby = [ImageFolder(folder / "images", size=size, text="caption") for size in (16, 17)]
    first, second = (precompute(settings.model_copy(update={"data": data}), recipes=folder) for data in nearby)
    assert first.fresh == second.fresh == 9


def test_a_teacher_of_prompts_without_any_is_refused(folder):
    settings = config(folder).model_copy(update={"data": Noise(), "flip": False})
    vsd = settings.stages[0].model_copy(update={"objective": VSD()})
    with pytest.raises(UserError, match="is conditioned on prompts and the data has none"):
        precompute(settings.model_copy(update={"stages": (vsd,)}), recipes=folder)


@pytest.mark.slow
def test_processes_share_the_images(folder):
    assert small_run.in_processes(2, precompute_here, config(folder)) == [0, 0]
    made = precompute(config(folder), recipes=folder)
    assert (made.fresh, made.images > 9) == (0, True)
    assert len(list((folder / "cache/latents").rglob("*.safetensors"))) == 6  # of three shapes by two processes


def precompute_here(settings):
    precompute(settings, recipes=settings.out.parent)
