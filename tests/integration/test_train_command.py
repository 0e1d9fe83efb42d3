"""`fastgen train` from its command line: whole small runs, and every bad input with its one paragraph."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fastgen.cli import main
from fastgen.errors import UserError
from fastgen.models.pipelines.notes import Notes
from fastgen.objectives import DMD2

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("few_previews")
QUICK = """\
out: {here}/out
device: cpu
teacher: {{path: {here}/teacher}}
data: {{source: noise, num_classes: 10}}
objective: {{name: dmd2, gan: 0, ratio: 1}}
train: {{images: 8, batch: 4}}
log: {{trackers: [], previews: 1, every: 1}}
"""
NEW = """\
out: {here}/new
export: {here}/teacher
device: cpu
teacher:
  new:
    pipeline: DDPMPipeline
    parts:
      unet:
        class: UNet2DModel
        sample_size: 8
        block_out_channels: [8, 16]
        layers_per_block: 1
        down_block_types: [DownBlock2D, DownBlock2D]
        up_block_types: [UpBlock2D, UpBlock2D]
        norm_num_groups: 4
      scheduler: {{class: DDIMScheduler, timestep_spacing: trailing, clip_sample: false}}
student: {{steps: [5], sampler: ode}}
data: {{source: folder, path: {here}/images, size: 8}}
objective: {{name: pretrain, label_dropout: 0}}
train: {{images: 8, batch: 4}}
log: {{trackers: [], previews: 1}}
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    tiny.class_conditional().save_pretrained(folder / "classes")
    return folder


@pytest.fixture
def here(tmp_path, stock) -> Path:
    """A folder with a class-conditional teacher and a quick config."""
    shutil.copytree(stock / "classes", tmp_path / "teacher")
    (tmp_path / "run.yaml").write_text(QUICK.format(here=tmp_path))
    return tmp_path


@pytest.fixture
def train(here):
    return lambda *arguments: main(["train", "--config", str(here / "run.yaml"), *arguments])


@pytest.fixture
def refused(here, train, capsys):
    """The paragraph of a run that fails; whatever was on disk before is there afterwards, byte for byte."""

    def refused(*arguments: str, code: int = 2) -> str:
        before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert train(*arguments) == code
        told = capsys.readouterr().err.partition("fastgen: error: ")[2]
        assert told
        assert "Traceback" not in told
        lost = [str(path) for path, data in before.items() if not path.is_file() or path.read_bytes() != data]
        assert not lost
        return told

    return refused


def images(folder: Path, *, count: int, size: int) -> None:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_scores_on_one_network_train_a_whole_student(verified_here, here, train, capsys):
    assert train("sharing=scores", "lora.rank=2", "objective={name: vsd, guidance: 1}") == 0
    assert "verified" in capsys.readouterr().out
    assert not (here / "out/student-lora").exists()


def test_a_preview_that_fails_is_a_warning_and_the_student_is_made(verified_here, here, train, capsys, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("without tiling")

    monkeypatch.setattr("fastgen.distillation.previews.grid", fail)
    assert train("log.previews=2") == 0
    told = capsys.readouterr()
    assert told.err.count("no preview could be made (NotImplementedError: without tiling); training goes on") == 1
    assert "verified" in told.out


def test_a_stage_ends_after_its_minutes(verified_here, here, train):
    assert train("train.images=1000000", "train.minutes=0.01") == 0
    lines = (here / "out/log.jsonl").read_text().splitlines()
    assert 4 <= max(json.loads(line)["images"] for line in lines if "images" in line) < 1_000_000


def test_a_class_conditional_teacher_becomes_a_student_that_plain_diffusers_can_load(here, train, capsys):
    assert train() == 0
    assert "verified" in capsys.readouterr().out
    plain = DiffusionPipeline.from_pretrained(here / "out/student")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    drawn = plain(class_labels=[3, 4], batch_size=2, generator=generators, num_inference_steps=1, output_type="np")
    student = str(here / "out/student")
    assert main(["sample", student, "--labels", "3,4", "--device", "cpu", "--out", str(here / "samples")]) == 0
    sampled = [np.asarray(Image.open(here / f"samples/{i:05}.png")) / 255 for i in range(2)]
    assert np.abs(np.stack(sampled) - drawn.images).max() <= 0.501 / 255
    before = DiffusionPipeline.from_pretrained(here / "teacher").unet.state_dict()
    assert any(not torch.equal(w, before[name]) for name, w in plain.unet.state_dict().items())
    log = [json.loads(line) for line in (here / "out/log.jsonl").read_text().splitlines()]
    assert len(log) == 2


@pytest.mark.usefixtures("verified_here")
def test_an_unconditional_teacher(here, train):
    tiny.ddpm().save_pretrained(here / "free")
    assert train(f"teacher.path={here / 'free'}", "data={source: noise}") == 0
    student = DiffusionPipeline.from_pretrained(here / "out/student")
    assert student(batch_size=2, num_inference_steps=1, output_type="np").images.shape == (2, 8, 8, 3)


@pytest.mark.usefixtures("verified_here")
def test_a_text_to_image_teacher_without_images_with_guidance_and_two_step_counts(here, train):
    tiny.stable_diffusion().save_pretrained(here / "text")
    (here / "prompts.txt").write_text("a red fox\n\na blue jay\n")
    data = f"data={{source: prompts, path: {here / 'prompts.txt'}}}"
    assert train(f"teacher.path={here / 'text'}", data, "objective.guidance=2", "student.steps=[1, 2]") == 0
    student = here / "out/student"
    assert Notes.read(student).steps == (1, 2)
    plain = DiffusionPipeline.from_pretrained(student)
    for steps in (1, 2):
        stock = plain("a red fox", num_inference_steps=steps, guidance_scale=1.0, output_type="np", height=16, width=16)
        assert stock.images.shape == (1, 16, 16, 3)
    arguments = ["--prompt", "a red fox", "--steps", "2", "--device", "cpu", "--out", str(here / "samples")]
    assert main(["sample", str(student), *arguments]) == 0
    assert (here / "samples/00000.png").is_file()


@pytest.mark.usefixtures("verified_here")
def test_a_missing_teacher_is_pretrained_by_its_recipe_then_distilled(here, train, capsys):
    shutil.rmtree(here / "teacher")
    images(here / "images", count=5, size=10)
    (here / "recipes").mkdir()
    (here / "recipes/new.yaml").write_text(NEW.format(here=here))
    assert train("teacher.recipe=recipes/new.yaml", "data={source: noise}") == 0
    assert "no teacher in" in capsys.readouterr().out
    for folder in ("teacher", "out/student"):
        pipe = DiffusionPipeline.from_pretrained(here / folder)
        assert pipe(batch_size=1, num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 3)
    assert Notes.read(here / "teacher").steps == (5,)


def test_a_recipe_that_makes_another_folder_is_refused(here, refused):
    (here / "new.yaml").write_text(NEW.format(here=here))
    told = refused(f"teacher.path={here / 'nowhere'}", "teacher.recipe=new.yaml")
    assert f"{here / 'nowhere'} does not exist" in told
    assert f"in {here / 'teacher'}: make the two agree" in told
    itself = (here / "run.yaml").read_text().replace("/teacher}", "/nowhere, recipe: run.yaml}")
    (here / "run.yaml").write_text(itself + f"export: {here / 'nowhere'}\n")
    assert "distils" in refused("--dry-run")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sead=3", "run.yaml is not a valid config:\n  sead: no such setting; did you mean seed?"),
        ("train.images=many", "stages.0.train.images: Input should be a valid integer"),
        ("objective.name=dmd3", "there is no objective 'dmd3'; did you mean dmd?"),
        ("teacher.path={here}/run.yaml", "run.yaml is not a .safetensors file"),
        ("teacher.path={here}/empty", "empty is not a pipeline: it has no model_index.json"),
        ("teacher.path={here}/nowhere", "there is no pipeline folder"),
        ("data.num_classes=7", "the data has 7 classes, the teacher 10: use the data"),
        ("teacher.num_classes=50", "reach label 49, but the ConsistencyModelPipeline has embeddings for 0 to 10"),
        ("teacher.null_label=11", "reach label 11, but"),
        ("data={source: noise}", "conditioned on labels and the data has none"),
        ("data={source: prompts, path: {here}/none.txt}", "none.txt"),
        ("data={source: folder, path: {here}/none, size: 8}", "none cannot be read"),
        ("objective.gan=0.1", "needs real images and the data source has none"),
        ("objective={name: pretrain, label_dropout: 0}", "needs real images and the data source has none"),
        ("out={here}/run.yaml", "run.yaml, which is a file: give a folder"),
        ("out={here}/run.yaml/deeper", "run.yaml/deeper, but {here}/run.yaml is a file: give a folder"),
        ("export={here}/run.yaml", "run.yaml, which is a file: give a folder"),
        ("export={here}/precious", "precious, which already holds thesis.txt: give another folder"),
        ("export={here}/teacher", "would replace {here}/teacher"),
        ("export={here}", "would replace {here}/out"),
        ("export={here}/out", "would replace {here}/out"),
        ("student={steps: [3], sampler: ode}", "3 (a deterministic step must divide 1000 trained steps)"),
        ("train.micro_batch=3", "batch 4 is not a multiple of micro_batch 3"),
    ],
)
def test_bad_input_is_one_paragraph(here, refused, override, words):
    (here / "empty").mkdir()
    (here / "precious").mkdir()
    (here / "precious/thesis.txt").write_text("years of work")
    assert words.replace("{here}", str(here)) in refused(override.replace("{here}", str(here)))
    assert not (here / "out/checkpoints").exists()


def test_data_that_do_not_fit_the_teacher_are_refused(here, refused):
    gan = ["objective.gan=0.1", "data={source: digits}"]
    assert "shape (1, 16, 16) do not fit the teacher, whose samples have shape (3, 8, 8)" in refused(*gan)
    assert "names 'mid_blok', which the network does not have; did you mean mid_block" in refused(
        *gan, f"out={here / 'other'}", "discriminator.layers=[mid_blok]"
    )


def test_a_damaged_teacher_is_refused_and_named(here, refused):
    weights = here / "teacher/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    told = refused()
    assert str(weights) in told
    assert "Copy or download it again" in told
    weights.write_bytes(whole)
    (here / "teacher/model_index.json").write_text("{")
    for options in ([], ["--dry-run"]):
        told = refused(*options)
        assert str(here / "teacher") in told
        assert "line 1 column 2" in told


@pytest.mark.usefixtures("verified_here")
def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(here, train, refused):
    assert train("student.sampler=ode", "checkpoints.keep=1") == 0
    assert "already holds a run: go on with it by --resume" in refused()
    assert "already holds README.md" in refused(f"out={here / 'two'}", f"export={here / 'out/student'}")
    told = refused("--resume", "seed=4", code=3)
    assert "seed was 0, is 4" in told
    assert "student.sampler was ode, is renoise" in told
    assert f"resume with the config saved in {here / 'out/config.yaml'}" in told
    tensors = next((here / "out/checkpoints").rglob("generator.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert str(tensors.parent) in refused("--resume", "student.sampler=ode", code=3)


def test_a_run_that_breaks_down_keeps_its_checkpoint(here, train, capsys, monkeypatch):
    sound, spoilt = DMD2.generator, iter([1.0, torch.nan])
    monkeypatch.setattr(DMD2, "generator", lambda *told: {"dm": sound(*told)["dm"] * next(spoilt)})
    assert train("train.images=40", "checkpoints.every=4") == 4
    told = capsys.readouterr().err
    assert "is nan in cycle 1 of stage 'dmd2', generator's turn" in told
    assert "lower that role's learning rate" in told
    assert [path.name for path in (here / "out/checkpoints").iterdir()] == ["00000004"]
    assert not (here / "out/student").exists()


def test_a_stack_trace_only_with_debug(here, train, refused):
    told = refused("objective.ratio=0")
    assert "run.yaml is not a valid config:" in told
    assert "ratio is 0: the fake score needs at least one update" in told
    with pytest.raises(UserError, match="ratio is 0"):
        train("objective.ratio=0", "--debug")
    with pytest.raises(UserError, match="there is no config"):
        main(["train", "--config", str(here / "nowhere.yaml"), "--debug"])


def test_a_dry_run_leaves_no_trace(here, train, capsys):
    before = sorted(here.rglob("*"))
    assert train("--dry-run", "seed=3") == 0
    assert "seed: 3" in capsys.readouterr().out
    assert sorted(here.rglob("*")) == before
