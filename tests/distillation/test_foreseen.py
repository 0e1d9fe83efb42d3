"""What a dry run says of a teacher that it does not load: what the run itself is refused for, in the run's words."""

import pytest
import tiny
from encoded import save
from PIL import Image

from fastgen.cli import main
from fastgen.config.yaml_file import load
from fastgen.distillation.distil import ready
from fastgen.distillation.foreseen import foreseen
from fastgen.errors import UserError

RUN = """
out: {here}/out
device: cpu
cache: null
teacher: {{path: {here}/{teacher}}}
student: {{steps: [2]}}
data: {{source: noise}}
objective: {{name: dmd2, gan: 0, ratio: 1, guidance: 1}}
train: {{images: 4, batch: 2}}
log: {{trackers: [], previews: 0}}
"""
SIZED = "student={{steps: [2], height: 16, width: 16}}"
READS = "objective={{name: dmd2, ratio: 1, guidance: 1}}"
IMAGES = "data={{source: folder, path: {here}/images, size: %d}}"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Pipelines of pixels and of latents, and captioned images of 32 px."""
    here = tmp_path_factory.mktemp("teachers")
    tiny.ddpm().save_pretrained(here / "ddpm")
    tiny.class_conditional().save_pretrained(here / "classes")
    tiny.stable_diffusion().save_pretrained(here / "latents")
    (here / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 20, 60)).save(here / f"images/{number}.png")
        save(here / f"images/{number}.txt", "a fox")
    return here


def config_in(here, teacher, *overrides):
    file = here / f"{teacher}.yaml"
    save(file, RUN.format(here=here, teacher=teacher))
    return file, [override.format(here=here) for override in overrides]


REFUSED = [
    ("classes", [], "conditioned on labels and the data has none"),
    ("classes", ["data={{source: digits}}", "teacher.num_classes=3"], "the data has 10 classes, the teacher 3"),
    ("classes", ["data={{source: digits}}", "teacher.null_label=99"], "null_label reach label 99"),
    ("ddpm", ["student={{steps: [2], height: 16, width: 16}}"], "DDPMPipeline takes no height"),
    ("ddpm", ["objective.guidance=3"], "the teacher has no unconditional mode"),
    ("ddpm", [READS, IMAGES % 32], r"shape \(3, 32, 32\) do not fit the teacher, whose samples have shape \(3, 8, 8\)"),
    ("latents", [SIZED, READS, IMAGES % 32], r"latents of \[4, 16, 16\], the teacher's samples of \[4, 8, 8\]"),
    pytest.param(
        *("latents", [SIZED, READS, IMAGES % 16, "data.channels=1"], r"images of shape \(1, 16, 16\) do not fit"),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("teacher", "overrides", "words"), REFUSED)
def test_what_a_run_is_refused_for_is_foreseen_in_its_words(teachers, tmp_path, teacher, overrides, words):
    file, overrides = config_in(teachers, teacher, *overrides)
    config = load(file, [*overrides, f"out={tmp_path / 'out'}"])
    found = list(foreseen(config, recipes=teachers))
    with pytest.raises(UserError, match=words) as refused, ready(config, recipes=teachers) as made:
        made.run.train(resume=False)
    assert found == [str(refused.value)]


@pytest.mark.parametrize(
    ("teacher", "overrides"),
    [
        ("ddpm", []),
        ("classes", ["data={{source: noise, num_classes: 10}}"]),
        ("latents", [SIZED, READS, IMAGES % 16]),
        ("nowhere", []),
    ],
)
def test_nothing_is_foreseen_of_a_run_that_would_train_or_of_a_teacher_that_is_not_here(teachers, teacher, overrides):
    file, overrides = config_in(teachers, teacher, *overrides)
    assert list(foreseen(load(file, overrides), recipes=teachers)) == []


def test_a_dry_run_ends_as_the_run_does(teachers, tmp_path, capsys):
    file, overrides = config_in(teachers, "ddpm", "objective.guidance=3", f"out={tmp_path / 'out'}")
    assert main(["train", "--config", str(file), "--dry-run", *overrides]) == 2
    told = capsys.readouterr()
    assert "updates: generator" in told.out
    assert "the run would be refused here:\n  stage 'dmd2' uses guidance" in told.err
    assert main(["train", "--config", str(file), *overrides]) == 2
    assert not (tmp_path / "out/student").exists()


def test_roles_that_cannot_be_built_are_refused_by_a_dry_run_too(teachers, tmp_path, capsys):
    told = [READS, IMAGES % 8, "discriminator.layers=[nowhere]", f"out={tmp_path / 'out'}"]
    file, overrides = config_in(teachers, "ddpm", *told)
    for more in (["--dry-run"], []):
        assert main(["train", "--config", str(file), *more, *overrides]) == 2
        assert "discriminator.layers names 'nowhere', which the network does not have" in capsys.readouterr().err
