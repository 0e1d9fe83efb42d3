"""The steps of a distillation, taken one by one, come to what a whole run comes to."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

import fastgen
from fastgen.cli import main

pytestmark = pytest.mark.usefixtures("verified_here", "few_previews")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.class_conditional().save_pretrained(folder)
    return folder


def config(teacher: Path, out: Path, **settings: object) -> fastgen.Config:
    return fastgen.load_config(
        {
            "out": str(out),
            "device": "cpu",
            "teacher": {"path": str(teacher)},
            "data": {"source": "noise", "num_classes": 10},
            "objective": {"name": "dmd2", "gan": 0, "ratio": 1},
            "train": {"images": 12, "batch": 4, "ema": 0.5, "optim": {"lr": 1e-2}},
            "log": {"trackers": [], "previews": 0},
            **settings,
        }
    )


def saved(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_a_stage_and_its_export_are_those_of_a_whole_run(teacher: Path, tmp_path: Path):
    whole = fastgen.distil(config(teacher, tmp_path / "whole"))
    settings = config(teacher, tmp_path / "steps")
    student = fastgen.Student(settings, fastgen.load_teacher(settings))
    stage = fastgen.build_stage(student)
    figures = [stage.cycle() for _ in range(3)]
    assert stage.done
    assert {"generator/dm", "fake_score/denoise", "generator/grad"} <= figures[0].keys()
    folder = fastgen.export_student(student, stage)
    assert differ(saved(folder), saved(whole)) < 1e-6
    assert differ(saved(folder), saved(teacher)) > 1e-3
    assert differ(saved(folder), stage.roles["generator"].net.state_dict()) > 1e-3, "the average, not the last weights"


def test_a_stage_goes_on_from_the_one_before(teacher: Path, tmp_path: Path):
    train = {"images": 8, "batch": 4, "ema": None, "optim": {"lr": 1e-2}}
    stages = [{"objective": {"name": "dmd2", "gan": 0, "ratio": 1}, "name": name, "train": train} for name in "ab"]
    student = fastgen.Student(
        settings := fastgen.load_config({**plain(config(teacher, tmp_path)), "stages": stages}),
        fastgen.load_teacher(settings),
    )
    first = fastgen.build_stage(student, 0)
    for _ in range(2):  # in the first the two scores are one, and nothing moves
        first.cycle()
    assert differ(first.roles["generator"].net.state_dict(), saved(teacher)) > 1e-3
    after, anew = (fastgen.build_stage(student, 1, after=before).roles["generator"].net for before in (first, None))
    assert differ(after.state_dict(), first.roles["generator"].net.state_dict()) == 0
    assert differ(anew.state_dict(), saved(teacher)) == 0


def plain(settings: fastgen.Config) -> dict[str, object]:
    kept = {"out", "device", "teacher"}
    return {
        **settings.model_dump(mode="json", include=kept, exclude_none=True),
        "data": {"source": "noise", "num_classes": 10},
    }


def test_what_a_loop_of_ones_own_trained_is_exported(teacher: Path, tmp_path: Path):
    settings = config(teacher, tmp_path / "out", student={"steps": [2]})
    student = fastgen.Student(settings, fastgen.load_teacher(teacher, device="cpu"))
    roles = fastgen.build_roles(student)
    with torch.no_grad():
        for parameter in roles.parameters("generator"):
            parameter.add_(0.01)
    folder = fastgen.export_student(student, roles)
    moved = {name: value + 0.01 for name, value in saved(teacher).items()}
    assert differ(saved(folder), moved) < 1e-6
    assert [found.steps for found in fastgen.verify(folder)] == [2]


def test_batches_are_those_of_their_place(teacher: Path, tmp_path: Path):
    settings = config(teacher, tmp_path)
    student = fastgen.Student(settings, fastgen.load_teacher(settings))
    first, again = (fastgen.batches(student) for _ in range(2))
    noises = [next(first).noise() for _ in range(2)]
    assert torch.equal(noises[0], next(again).noise())
    assert not torch.equal(noises[0], noises[1])
    assert [next(again).images, next(again).images] == [4, 8]


def test_samples_are_those_of_the_command(teacher: Path, tmp_path: Path):
    images = fastgen.sample(teacher, labels=[3, 7], num=3, seed=5, steps=2, device="cpu")
    asked = ["--labels", "3,7", "--num", "3", "--seed", "5", "--steps", "2"]
    assert main(["sample", str(teacher), *asked, "--out", str(tmp_path)]) == 0
    assert images.shape == (3, 3, 8, 8)
    for number, image in enumerate(images):
        assert torch.equal(pixels(sorted(tmp_path.glob("0*.png"))[number]), (image * 255).round().byte())


def pixels(file: Path) -> Tensor:
    return decode_image(str(file), ImageReadMode.RGB)


def test_an_evaluation_names_a_setting_that_it_does_not_have():
    with pytest.raises(fastgen.UserError, match=r"no setting 'studnet'; did you mean student\?"):
        fastgen.evaluate(reference="real", studnet="student")
    with pytest.raises(fastgen.UserError, match="num: Input should be a valid integer"):
        fastgen.evaluate(reference="real", num="many")
