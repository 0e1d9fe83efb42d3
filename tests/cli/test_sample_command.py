"""`fastgen sample`: what it writes, what it warns of, and what it refuses."""

import json

import diffusers
import pytest
import tiny
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from fastgen.cli import main
from fastgen.cli.sample import label_list
from fastgen.errors import UserError
from fastgen.models.pipelines import loading
from fastgen.models.pipelines.notes import Notes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stock folders of the tiny pipelines, by kind; foreign ones, without notes."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny.ddpm().save_pretrained(root / "ddpm")
    tiny.class_conditional().save_pretrained(root / "classes")
    tiny.stable_diffusion().save_pretrained(root / "text")
    return root


@pytest.fixture
def student(folders, tmp_path):
    """A writable copy of the class-conditional folder with notes."""
    folder = tmp_path / "student"
    tiny.class_conditional().save_pretrained(folder)
    Notes(steps=(2, 4), num_classes=10, null_label=10).write(folder)
    return folder


def run(*arguments):
    return main(["sample", *map(str, arguments)])


def test_classes_are_drawn_in_turn_and_reach_the_network_without_the_null_label(folders, tmp_path, monkeypatch):
    seen = []
    forward = UNet2DModel.forward

    def recording(self, *arguments, class_labels, **others):
        seen.extend(class_labels.tolist())
        return forward(self, *arguments, class_labels=class_labels, **others)

    monkeypatch.setattr(UNet2DModel, "forward", recording)
    assert run(folders / "classes", "--num", 25, "--steps", 1, "--out", tmp_path) == 0
    assert seen == [i % 10 for i in range(25)]
    record = json.loads((tmp_path / "samples.json").read_text())
    assert [image["label"] for image in record["images"]] == seen
    assert [image["seed"] for image in record["images"]] == list(range(25))
    assert {image["steps"] for image in record["images"]} == {1}


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("classes", ["--prompt", "a fox"], "conditioned on class labels and takes no prompts"),
        ("text", ["--labels", "1"], "conditioned on prompts and takes no class labels"),
        ("ddpm", ["--labels", "1"], "takes neither class labels nor prompts"),
        ("text", [], "Give --prompt or --prompts"),
        ("classes", ["--labels", "3,10"], "classes 0 to 9"),
        ("ddpm", ["--guidance", "3"], "has no guidance"),
        ("ddpm", ["--device", "cuda:77"], "cannot be moved to cuda:77"),
        ("text", ["--prompts", "absent.txt"], "absent.txt"),
        ("ddpm", ["--student", "another"], "2 were named"),
        ("nowhere/at/all", [], "no pipeline folder"),
        ("ddpm/unet", [], "has no model_index.json (found: config.json"),
        ("ddpm/model_index.json", [], "single file"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(folders, tmp_path, capsys, folder, options, message):
    out = tmp_path / "out"
    assert run(folders / folder, "--steps", 1, "--out", out, *options) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "fastgen: error:" in line]
    assert len(error) == 1
    assert message in error[0]
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--num", "0"],
        ["--seed", "-1"],
        ["--labels", "3-1"],
        ["--dtype", "int8"],
        ["--steps", "x"],
        ["--guidance", "nan"],
        ["--stack", "a=inf"],
    ],
)
def test_an_option_that_cannot_be_read_names_itself(options, capsys):
    with pytest.raises(SystemExit) as stop:
        run("anywhere", *options)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_labels_are_lists_and_ranges():
    assert label_list("0-3, 7,5") == (0, 1, 2, 3, 7, 5)


def test_a_hub_id_that_cannot_be_fetched_is_explained(monkeypatch, capsys):
    def unreachable(*_, **__):
        raise OSError("no route to the hub")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", unreachable)
    assert run("owner/name") == 2
    assert "neither a folder here nor" in capsys.readouterr().err


def test_a_hub_id_brings_its_notes(student, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(loading.DiffusionPipeline, "download", lambda path, **_: student)
    monkeypatch.setattr(loading, "hf_hub_download", lambda path, name: asked.append((path, name)))
    assert run("owner/name", "--num", 1, "--out", tmp_path / "out") == 0
    assert asked == [("owner/name", "fastgen.json")]


def test_damaged_weights_are_named(student, capsys):
    weights = student / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert run(student) == 2
    assert f"{weights} is damaged" in capsys.readouterr().err

    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    assert run(student) == 2
    assert "lacks 1 weights of UNet2DModel, such as conv_in.weight" in capsys.readouterr().err

    weights.rename(weights.with_suffix(".bin"))
    assert run(student) == 2
    assert "cannot be loaded as a Diffusers pipeline" in capsys.readouterr().err


def test_code_in_a_folder_is_never_run(student, capsys):
    ran = student / "ran"
    (student / "pipeline.py").write_text(f"open({str(ran)!r}, 'w')\n")
    index = json.loads((student / "model_index.json").read_text())
    (student / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Mine"]}))
    assert run(student) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert not ran.exists()


def test_a_student_is_sampled_as_its_notes_say(student, tmp_path, capsys):
    assert run(student, "--num", 1, "--out", tmp_path / "default") == 0
    record = json.loads((tmp_path / "default" / "samples.json").read_text())
    assert record["images"][0]["steps"] == 2
    assert "warning" not in capsys.readouterr().err
    assert run(student, "--num", 1, "--steps", 3, "--out", tmp_path / "three") == 0
    assert "3 steps were asked for, but this student was trained for 2, 4" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [{"format": 2}, {"steps": []}, {"steps": [0]}, {"null_label": 3}, {"unknown": 1}])
def test_notes_survive_a_round_trip_and_refuse_damage(student, damage):
    notes = Notes(steps=(4, 1), guidance=None, num_classes=7, null_label=7, objective="dmd2", teacher="a/b")
    notes.write(student)
    assert Notes.read(student) == notes
    path = student / "fastgen.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match=r"fastgen\.json"):
        Notes.read(student)


def test_notes_that_are_no_json_name_the_file(student, capsys):
    (student / "fastgen.json").write_text("{")
    assert run(student) == 2
    assert "fastgen.json" in capsys.readouterr().err
    assert Notes.read(student / "unet") is None


def test_nothing_in_the_output_folder_is_lost(folders, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert run(folders / "ddpm", "--num", 3, "--steps", 1, "--out", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"mine.txt", "00000.png", "00001.png", "00002.png", "grid.png", "samples.json"}

    assert run(folders / "ddpm", "--num", 2, "--steps", 1, "--seed", 9, "--out", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    again = run(folders / "ddpm", "--num", 2, "--steps", 1, "--seed", 9, "--out", tmp_path, "--overwrite")
    assert again == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after["00000.png"] != before["00000.png"]
    assert after["00002.png"] == before["00002.png"]
    assert after["mine.txt"] == before["mine.txt"]


def test_prompts_come_from_options_and_files_and_are_cycled(folders, tmp_path):
    listed = tmp_path / "prompts.txt"
    listed.write_bytes("\ufeffa fox\r\n\r\nan owl\r\n".encode())
    out = tmp_path / "out"
    asked = ["--prompt", "a bee", "--prompts", listed, "--num", 5, "--steps", 2, "--guidance", 2]
    assert run(folders / "text", *asked, "--out", out) == 0
    images = json.loads((out / "samples.json").read_text())["images"]
    assert [image["prompt"] for image in images] == ["a bee", "a fox", "", "an owl", "a bee"]
    assert {image["guidance"] for image in images} == {2.0}


@pytest.mark.parametrize("grey", [True, False])
def test_many_images_are_shown_up_to_the_limit(grey, tmp_path):
    pipe = tiny.ddpm(channels=1 if grey else 3)
    pipe.save_pretrained(tmp_path / "pipe")
    assert run(tmp_path / "pipe", "--num", 103, "--steps", 1, "--batch-size", 40, "--out", tmp_path) == 0
    assert len(list(tmp_path.glob("?????.png"))) == 103
    assert Image.open(tmp_path / "00102.png").mode == ("L" if grey else "RGB")
    assert Image.open(tmp_path / "grid.png").size == (10 * (64 + 2) + 2,) * 2
