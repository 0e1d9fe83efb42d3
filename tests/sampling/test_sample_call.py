"""What `fastgen sample` tells a pipeline: as a student was trained, as it is asked, and what of that has no effect."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES
from PIL import Image
from safety import with_checker

from fastgen.cli import main
from fastgen.export.unguided import unguided
from fastgen.models.pipelines.notes import Notes

ROOT = Path(__file__).parents[2]
ONE = ["--num", "1", "--steps", "1", "--device", "cpu"]


def student(folder, pipe, **notes):
    pipe.save_pretrained(folder)
    Notes(**{"steps": (1,), **notes}).write(folder)
    return folder


def sample(folder, out, *options):
    """The first picture as an array, and samples.json."""
    assert main(["sample", str(folder), *ONE, *options, "--out", str(out)]) == 0
    return np.asarray(Image.open(out / "00000.png")).astype(int), json.loads((out / "samples.json").read_text())


def test_a_student_is_drawn_at_the_size_it_was_trained_for(tmp_path):
    folder = student(tmp_path / "s", tiny.stable_diffusion(), arguments={"height": 32, "width": 48})
    picture, record = sample(folder, tmp_path / "own", "--prompt", "fox")
    assert picture.shape == (32, 48, 3)
    assert record["arguments"] == {"guidance_scale": 1.0, "height": 32, "width": 48}
    picture, record = sample(folder, tmp_path / "other", "--prompt", "fox", "--height", "16")
    assert picture.shape == (16, 48, 3)


def test_another_size_than_the_trained_one_is_a_warning(tmp_path, capsys):
    folder = student(tmp_path / "s", tiny.stable_diffusion(), arguments={"height": 32, "width": 32})
    sample(folder, tmp_path / "out", "--prompt", "fox", "--height", "16", "--width", "32")
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told == [
        "fastgen: warning: height 16 was asked for, but this student was trained for 32: expect worse images."
    ]


def test_a_student_whose_network_is_told_guidance_is_told_what_it_was_trained_with(tmp_path, capsys):
    """Flux dev: notes say w = 1 of true guidance, the network's own scale stays at the call's default."""
    pipe = FAMILIES["flux"].build()
    folder = student(tmp_path / "s", pipe, arguments={"height": 16, "width": 16})

    def drawn(**arguments):
        call = {"prompt": ["fox"], "height": 16, "width": 16, "num_inference_steps": 1, "output_type": "np"}
        return pipe(**call, **arguments, generator=[torch.Generator().manual_seed(0)]).images[0]

    plain, wrong = (255 * drawn(**told) for told in ({"true_cfg_scale": 1.0}, {"guidance_scale": 1.0}))
    picture, record = sample(folder, tmp_path / "own", "--prompt", "fox")
    assert np.abs(picture - plain).max() <= 1
    assert np.abs(wrong - plain).max() > 2
    assert record["arguments"]["true_cfg_scale"] == 1.0
    assert "warning" not in capsys.readouterr().err
    _, record = sample(folder, tmp_path / "seven", "--prompt", "fox", "--guidance", "7")
    assert "guidance_scale 7 was asked for, but this student was trained for 3.5" in capsys.readouterr().err
    assert record["images"][0]["guidance"] == 7


@pytest.mark.parametrize("option", [["--guidance", "7"], ["--negative-prompt", "owl"]])
def test_what_changes_nothing_is_a_warning_and_not_recorded(tmp_path, capsys, option):
    folder = student(tmp_path / "s", unguided(tiny.stable_diffusion()), guidance=None)
    plain, expected = sample(folder, tmp_path / "plain", "--prompt", "fox")
    assert "warning" not in capsys.readouterr().err
    picture, record = sample(folder, tmp_path / "asked", "--prompt", "fox", *option)
    assert "changes nothing" in capsys.readouterr().err
    assert np.array_equal(picture, plain)
    assert record == expected
    assert record["images"][0]["guidance"] is record["images"][0]["negative_prompt"] is None


def test_what_has_an_effect_is_recorded(tmp_path, capsys):
    folder = tmp_path / "teacher"
    FAMILIES["stable_diffusion"].build().save_pretrained(folder)
    plain, record = sample(folder, tmp_path / "plain", "--prompt", "fox")
    assert record["images"][0]["guidance"] is None
    guided, record = sample(folder, tmp_path / "guided", "--prompt", "fox", "--guidance", "30")
    led, other = sample(folder, tmp_path / "led", "--prompt", "fox", "--guidance", "30", "--negative-prompt", "a b c")
    assert len({picture.tobytes() for picture in (plain, guided, led)}) == 3
    assert record["arguments"] == other["arguments"] == {"guidance_scale": 30.0}
    assert other["images"][0] | {"negative_prompt": None} == record["images"][0]
    assert other["images"][0]["negative_prompt"] == "a b c"
    _, record = sample(folder, tmp_path / "default", "--prompt", "fox", "--guidance", "7.5")
    assert record["images"][0]["guidance"] == 7.5
    assert "warning" not in capsys.readouterr().err


def test_guiding_a_student_again_is_a_warning(tmp_path, capsys):
    folder = student(tmp_path / "s", FAMILIES["stable_diffusion"].build(), guidance=1.0)
    _, record = sample(folder, tmp_path / "out", "--prompt", "fox", "--guidance", "7")
    assert "guidance_scale 7 was asked for, but this student was trained for 1" in capsys.readouterr().err
    assert record["images"][0]["guidance"] == 7


def test_true_guidance_and_its_negative_prompt(tmp_path, capsys):
    folder = tmp_path / "teacher"
    pipe = tiny.flux(guidance_embeds=False)
    pipe.save_pretrained(folder)
    size = ["--prompt", "fox", "--height", "16", "--width", "16"]
    sample(folder, tmp_path / "alone", *size, "--negative-prompt", "owl")
    assert "the negative prompt changes nothing" in capsys.readouterr().err
    _, record = sample(folder, tmp_path / "both", *size, "--negative-prompt", "owl", "--guidance", "4")
    assert "warning" not in capsys.readouterr().err
    assert (record["images"][0]["negative_prompt"], record["images"][0]["guidance"]) == ("owl", 4)


def test_blackened_pictures_are_counted_and_marked(tmp_path, capsys):
    with_checker(tiny.stable_diffusion()).save_pretrained(tmp_path / "p")
    assert main(["sample", str(tmp_path / "p"), "--prompt", "fox", "--num", "8", "--steps", "1",
                 "--device", "cpu", "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    flags = [image["flags"] for image in json.loads((tmp_path / "out" / "samples.json").read_text())["images"]]
    black = [not np.asarray(Image.open(tmp_path / "out" / f"{i:05d}.png")).any() for i in range(8)]
    assert [bool(one) for one in flags] == black
    assert 0 < sum(black) < 8
    assert {name for one in flags for name in one} == {"nsfw_content_detected"}
    assert f"{sum(black)} of 8 images were blackened" in capsys.readouterr().err


def test_a_size_that_the_pipeline_refuses_is_one_paragraph(tmp_path, capsys):
    FAMILIES["sd3"].build().save_pretrained(tmp_path / "p")
    asked = ["--prompt", "fox", "--height", "17", "--width", "16", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["sample", str(tmp_path / "p"), *asked]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("fastgen: error: StableDiffusion3Pipeline refused its call (ValueError: ")
    assert "'height': 17" in told


def test_a_size_that_is_rounded_is_a_warning_and_recorded_as_it_is(tmp_path, capsys):
    tiny.flux().save_pretrained(tmp_path / "p")
    picture, record = sample(tmp_path / "p", tmp_path / "out", "--prompt", "fox", "--height", "18", "--width", "16")
    assert picture.shape[:2] == (record["height"], record["width"]) == (16, 16)
    assert "height 18 was asked for, but its pictures have 16" in capsys.readouterr().err


def test_half_a_size_is_refused(tmp_path, capsys):
    """Stable Diffusion would draw its default size for it."""
    tiny.stable_diffusion().save_pretrained(tmp_path / "p")
    asked = ["--prompt", "fox", "--width", "32", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["sample", str(tmp_path / "p"), *asked]) == 2
    assert "give --height as well" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "frames"), [("latte", "video_length"), ("ltx", "num_frames")])
def test_videos_are_animated_pictures(tmp_path, name, frames):
    family = FAMILIES[name]
    family.build().save_pretrained(tmp_path / "p")
    count = 2 if name == "latte" else 9
    size = ["--height", str(family.size["height"]), "--width", str(family.size["width"]), "--frames", str(count)]
    _, record = sample(tmp_path / "p", tmp_path / "out", "--prompt", "fox", *size)
    assert record["arguments"][frames] == count
    with Image.open(tmp_path / "out" / "00000.png") as video:
        assert video.n_frames == count
    assert (tmp_path / "out" / "grid.png").is_file()


def test_an_order_without_a_pipeline_is_answered_before_anything_heavy_is_imported():
    code = (
        "import sys; from fastgen.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    for arguments in (["sample"], ["sample", "a", "--student", "b"], ["verify", "none", "--base", "x"],
                      ["verify", "none"]):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert "fastgen: error: " in done.stderr
