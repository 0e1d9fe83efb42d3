"""Students whose folder is no single pipeline, sampled and measured: LoRAs with what lies below, a folder per count."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from exporting import adapted, student_of
from families import FAMILIES
from PIL import Image
from safetensors.torch import save_file

from eval.images.pipelines import Draw, declared_steps, noted_size, pipelines
from eval.images.sources import Request, is_image_set
from fastgen.cli import main
from fastgen.errors import UserError
from fastgen.export.lora import FILES, export_lora
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.opening import Opened
from fastgen.models.pipelines.source import LoRAFile
from fastgen.models.pipelines.stacked import recorded
from fastgen.models.pipelines.students import Students
from fastgen.models.pipelines.text_embedding import text_embeddings
from fastgen.sampling.call import Asked
from fastgen.sampling.order import sample

FAMILY = FAMILIES["stable_diffusion"]
SIZE = {"height": 16, "width": 32}
DRAW = Draw(seed=0, batch_size=4, device=torch.device("cpu"), dtype="float32", request=Request(prompts=("fox",)))


@pytest.fixture
def stack(tmp_path, monkeypatch) -> Path:
    """base, ink.safetensors and the LoRA of a student whose teacher is both, all in the current folder."""
    monkeypatch.chdir(tmp_path)
    pipe = FAMILY.build()
    pipe.save_pretrained("base")
    student = student_of(pipe, (2,), "ode", SIZE)
    export_lora(pipe, adapted(pipe, seed=1)[1], student.notes, Path("made"), student.schedules)
    (Path("made") / FILES["diffusers"]).rename("ink.safetensors")
    _, ink = recorded(LoRAFile(path="ink.safetensors", weight=0.6))
    notes = Notes(**{**vars(student.notes), "teacher": "base", "hub": False, "loras": (ink,)})
    export_lora(pipe, adapted(pipe)[1], notes, Path("lora"), student.schedules)
    return tmp_path


def as_the_card_says(*, ink: float) -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained("base")
    pipe.load_lora_weights(".", weight_name="ink.safetensors", adapter_name="ink")
    pipe.load_lora_weights("lora", weight_name=FILES["diffusers"], adapter_name="fewstep")
    pipe.set_adapters(["ink", "fewstep"], [ink, 1.0])
    pipe.scheduler = DDIMScheduler.from_pretrained("lora", subfolder="scheduler")
    call = {"prompt": "fox", "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np", **SIZE}
    return 255 * pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]


@pytest.mark.usefixtures("stack")
def test_a_lora_is_sampled_on_its_base_and_the_loras_below(capsys):
    asked = ["--prompt", "fox", "--num-images", "1", "--device", "cpu", "--out", "out"]
    assert main(["sample", "lora", *asked]) == 0
    picture = np.asarray(Image.open("out/00000.png")).astype(float)
    assert picture.shape == (16, 32, 3)
    assert np.abs(picture - as_the_card_says(ink=0.6)).max() <= 1
    assert np.abs(picture - as_the_card_says(ink=0.0)).max() > 2
    assert json.loads(Path("out/samples.json").read_text())["images"][0]["steps"] == 2
    Path("base").rename("elsewhere")
    assert main(["sample", "lora", *asked, "--overwrite"]) == 2
    assert "name its folder with --base" in capsys.readouterr().err
    assert main(["sample", "lora", *asked, "--overwrite", "--base", "elsewhere"]) == 0
    assert np.abs(np.asarray(Image.open("out/00000.png")) - picture).max() <= 1
    assert main(["sample", "elsewhere", *asked, "--overwrite", "--base", "base"]) == 2
    assert "elsewhere is none" in capsys.readouterr().err


@pytest.mark.usefixtures("stack")
def test_a_lora_is_measured_at_what_its_notes_say():
    assert not is_image_set("lora")
    assert declared_steps("lora") == (2,)
    assert noted_size("lora") == SIZE
    (source,) = pipelines(Opened("lora"), DRAW, steps=(2,), asked=Asked())
    (batch,) = source.batches(range(1))
    assert np.abs(batch.images[0].permute(1, 2, 0).numpy() - as_the_card_says(ink=0.6)).max() <= 1


@pytest.fixture
def counted(tmp_path) -> Path:
    """A student with a folder for each of two step counts."""
    for count, kind in ((4, LCMScheduler), (1, DDIMScheduler)):
        pipe = tiny.stable_diffusion()
        pipe.register_modules(scheduler=kind.from_config(pipe.scheduler.config))
        pipe.save_pretrained(tmp_path / "student" / f"{count}step")
        Notes(steps=(count,), arguments={"height": 32, "width": 32}).write(tmp_path / "student" / f"{count}step")
    return tmp_path / "student"


def test_each_step_count_is_drawn_by_the_folder_that_serves_it(counted, tmp_path):
    asked = ["--prompt", "fox", "--num-images", "1", "--device", "cpu"]
    for count in (1, 4):
        out = tmp_path / str(count)
        assert main(["sample", str(counted), *asked, "--steps", str(count), "--out", str(out)]) == 0
        alone = tmp_path / f"alone-{count}"
        assert main(["sample", str(counted / f"{count}step"), *asked, "--out", str(alone)]) == 0
        assert (out / "00000.png").read_bytes() == (alone / "00000.png").read_bytes()
    assert declared_steps(str(counted)) == (1, 4)
    sources = list(pipelines(Opened(str(counted)), DRAW, steps=(4, 1), asked=Asked()))
    assert [type(source.pipe.scheduler) for source in sources] == [LCMScheduler, DDIMScheduler]
    assert [source.steps for source in sources] == [4, 1]


def test_the_previews_of_a_run_are_no_student(tmp_path):
    tiny.ddpm().save_pretrained(tmp_path / "student")
    (tmp_path / "previews").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "previews" / "0.png")
    assert not is_image_set(str(tmp_path))
    with pytest.raises(UserError, match="is the folder of a run: give its student"):
        Opened(str(tmp_path)).load(None, device="cpu", dtype=torch.float32)


def test_a_folder_of_pictures_is_no_student(tmp_path):
    (tmp_path / "4step").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "4step" / "0.png")
    assert is_image_set(str(tmp_path))
    with pytest.raises(UserError, match="is not a pipeline"):
        Opened(str(tmp_path)).load(None, device="cpu", dtype=torch.float32)


def of_text(file: Path) -> None:
    """A LoRA of the text encoder's own layers."""
    torch.manual_seed(0)
    place = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    width = FAMILY.build().text_encoder.config.hidden_size
    shapes = {"lora_A": (4, width), "lora_B": (width, 4)}
    save_file({f"{place}.{name}.weight": 0.1 * torch.randn(shape) for name, shape in shapes.items()}, file)


@pytest.mark.parametrize("below", [False, True])
def test_loras_of_several_students_lie_on_a_base_that_is_read_once(below, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = FAMILY.build()
    pipe.save_pretrained("base")
    student = student_of(pipe, (2,), "ode", SIZE, teacher="base", hub=False)
    of_text(Path("words.safetensors"))
    _, words = recorded(LoRAFile(path="words.safetensors"))
    notes = replace(student.notes, loras=(words,) if below else ())
    for number in (0, 1):
        export_lora(pipe, adapted(pipe, seed=number)[1], notes, Path(f"several/{number}"), student.schedules)
    Students(("0", "1"), centres=text_embeddings(pipe, ["fox", "zebra"])).write(Path("several"))
    read, encoder = [], type(pipe.text_encoder)
    monkeypatch.setattr(encoder, "from_pretrained", counting(encoder.from_pretrained, read))
    images = sample("several", prompts=["zebra", "fox"], device="cpu")
    assert len(read) == (2 if below else 1)
    for row, owner in enumerate((1, 0)):
        alone = sample(f"several/{owner}", prompts=["zebra", "fox"], device="cpu")
        torch.testing.assert_close(images[row], alone[row], atol=1e-5, rtol=0)
        assert (images[row] - alone[1 - row]).abs().max() > 1e-2


def counting(made: Callable[..., Any], read: list[Any]) -> Callable[..., Any]:
    """A loader that notes what it is given."""

    def load(*args: Any, **kwargs: Any) -> Any:
        read.append(args)
        return made(*args, **kwargs)

    return load
