"""A student that is smaller than its teacher: trained, resumed, exported, verified, gone on with, one of several."""

import json
import re
import shutil

import pytest
import small_run
import tiny
import torch
from diffusers import DiffusionPipeline
from isolated import HERE
from safetensors.torch import load_file, save_file

from fastgen.cli import main
from fastgen.config.schema import Config
from fastgen.distillation.checks import check_stages
from fastgen.distillation.costs import forecast_of
from fastgen.distillation.distil import distil
from fastgen.distillation.plan import plan
from fastgen.distillation.preflight import refusals
from fastgen.distillation.steps import build_roles
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import teacher_of
from fastgen.errors import CheckpointError, UserError
from fastgen.models.roles import taken
from fastgen.planning import meter
from fastgen.planning.cards import H100

NARROW = {"block_out_channels": [4, 8], "norm_num_groups": 2}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALLER = {"settings": NARROW}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and `run`, two stages of four updates of a narrow student."""
    folder = tmp_path_factory.mktemp("small")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.export.verify.subprocess", HERE)
        distil(config(folder, "run"), recipes=folder)
    return folder


def config(folder, out, *, network=SMALLER, dmd2=None, carry=None, **changes) -> Config:
    train = {"images": 8, "batch": 2, "ema": 0.9, "optim": {"eps": 1e-3, "lr": 1e-2}}
    matching = {"name": "guidance_distillation", "teacher_guidance": {"low": 1, "high": 1}}
    stages = [
        {"name": "matching", "objective": matching, "train": train},
        {"name": "few", "objective": {"name": "dmd2", "ratio": 1, **(dmd2 or {})}, "train": train},
    ]
    stages[1]["carry"] = carry or {}
    student = {"steps": [1], "network": network}
    settings = {"out": folder / out, "student": student, "checkpoints": {"every": 4, "keep": 9}, "stages": stages}
    return small_run.run_config(folder, **{**settings, **changes})


def size(folder) -> int:
    return sum(value.numel() for value in load_file(folder / WEIGHTS).values())


def test_a_smaller_student_is_a_stock_pipeline_with_its_own_network(folder, verified_here):
    student = folder / "run/student"
    told = json.loads((student / "unet/config.json").read_text())
    assert {name: told[name] for name in NARROW} == NARROW
    assert size(student) < size(folder / "teacher") / 3
    averages = load_file(folder / "run/checkpoints/00000016/ema.safetensors")
    weights = load_file(student / WEIGHTS)
    assert {f"net.{name}" for name in weights} == averages.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, averages[f"net.{name}"], msg=name)
    pipe = DiffusionPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    images = pipe(batch_size=2, class_labels=[0, 1], num_inference_steps=1, generator=noise, output_type="pt").images
    assert images.shape == (2, 1, 16, 16) or images.shape == (2, 16, 16, 1)
    assert main(["verify", str(student)]) == 0
    note = json.loads((folder / "run/log.jsonl").read_text().splitlines()[0])["note"]
    taken, whole = map(int, re.search(r"(\d+) of (\d+) tensors, start as the teacher's", note).groups())
    assert 0 < taken < whole == len(weights)


def test_scores_in_a_checkpoint_have_the_teachers_architecture(folder):
    shapes = {name: value.shape for name, value in load_file(folder / "teacher" / WEIGHTS).items()}
    held = load_file(folder / "run/checkpoints/00000016/fake_score.safetensors")
    assert {name: value.shape for name, value in held.items()} == {f"net.{name}": one for name, one in shapes.items()}


@pytest.mark.parametrize("left", ["00000004", pytest.param("00000012", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_ends_as_if_it_had_never_stopped(folder, tmp_path, verified_here, left):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name > left:
            shutil.rmtree(checkpoint)
    shutil.rmtree(run / "student")
    distil(config(folder, run), recipes=folder, resume=True)
    assert (run / "student" / WEIGHTS).read_bytes() == (folder / "run/student" / WEIGHTS).read_bytes()
    assert (run / "log.jsonl").read_bytes() == (folder / "run/log.jsonl").read_bytes()


def test_a_checkpoint_is_not_gone_on_with_by_another_network(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    other = config(folder, tmp_path / "run", network={"settings": {**NARROW, "layers_per_block": 2}})
    with pytest.raises(CheckpointError, match=r"student\.network\.settings\.layers_per_block"):
        distil(other, recipes=folder, resume=True)


def test_a_student_starts_as_the_network_in_a_folder_which_must_stay_what_it_was(folder, tmp_path, verified_here):
    unet = shutil.copytree(folder / "run/student/unet", tmp_path / "unet")
    settings = config(folder, tmp_path / "run", network={"path": str(unet)})
    begun = taken(build_roles(Student(settings, teacher_of(settings, torch.device("cpu")))).network("generator"))
    weights = load_file(folder / "run/student" / WEIGHTS)
    assert all(torch.equal(begun[name], value) for name, value in weights.items())
    distil(settings, recipes=folder)
    assert f"starts from {unet}: a network of its own" in (tmp_path / "run/log.jsonl").read_text()
    file = unet / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"contents of the network: unet/diffusion.*--allow-changed network"):
        distil(settings, recipes=folder, resume=True)


def test_a_smaller_student_goes_on_from_an_earlier_one_like_it_alone(folder):
    settings = config(folder, "new", init=str(folder / "run/student"))
    student = Student(settings, teacher_of(settings, torch.device("cpu")))
    begun, weights = taken(build_roles(student).network("generator")), load_file(folder / "run/student" / WEIGHTS)
    assert all(torch.equal(begun[name], value) for name, value in weights.items())
    other = config(folder, "new", init=str(folder / "run/student"), network={"settings": {"layers_per_block": 2}})
    with pytest.raises(UserError, match="of another network than this run's"):
        build_roles(Student(other, teacher_of(other, torch.device("cpu"))))


def test_what_a_smaller_student_is_told_is_baked_into_its_own_network(folder, tmp_path, verified_here):
    train = {"images": 4, "batch": 2, "optim": {"eps": 1e-3}}
    stages = [{"objective": {"name": "meanflow"}, "train": train}]
    student = {"steps": [1], "sampler": "ode", "network": SMALLER}
    distil(config(folder, tmp_path / "run", stages=stages, student=student, process="flow"), recipes=folder)
    assert size(tmp_path / "run/student") == size(folder / "run/student")


@pytest.mark.slow
def test_slices_of_a_smaller_student_on_two_processes_export_what_one_process_exports(folder, tmp_path):
    """Each has a half of the generator's network and of the score's, and one goes on from what both left."""
    train = {
        "images": 6,
        "batch": 2,
        "micro_batch": 1,
        "ema": 0.9,
        "sharding": "full",
        "optim": {"lr": 1e-3, "eps": 1e-3},
    }
    stages = [{"objective": {"name": "dmd2", "ratio": 1}, "train": train}]

    def trained(count, out, resume=False):
        settings = config(folder, tmp_path / out, stages=stages, checkpoints={"every": 4, "keep": 9})
        assert small_run.in_processes(count, small_run.run_or_die, settings, resume, None) == [0] * count
        return load_file(tmp_path / out / "student" / WEIGHTS)

    one, two = trained(1, "one"), trained(2, "two")
    assert sum(value.numel() for value in two.values()) == size(folder / "run/student")
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
    shutil.rmtree(tmp_path / "two/student")
    shutil.rmtree(tmp_path / "two/checkpoints/00000006")
    torch.testing.assert_close(trained(1, "two", resume=True), one, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_each_of_several_students_is_a_smaller_one(folder, tmp_path, verified_here):
    distil(config(folder, tmp_path / "run", students=2), recipes=folder)
    for number in "01":
        assert size(tmp_path / "run/student" / number) == size(folder / "run/student")
    drawn = ["--labels", "2,7", "--num-images", "2", "--out", str(tmp_path / "drawn")]
    assert main(["sample", str(tmp_path / "run/student"), *drawn]) == 0
    assert (tmp_path / "drawn/00001.png").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sharing": "lora"}, "under sharing=lora the generator is an adapter on the teacher's network, and student."),
        ({"dmd2": {"stabilisers": {"follow": 0.1}}}, "stage 'few' has stabilisers.follow, but the generator has a"),
        ({"carry": {"fake_score": "generator"}}, "carries the fake_score from 'generator', but the generator has a"),
        ({"carry": {"fake_score": "matching"}}, "carries the fake_score from 'matching', but the generator has a"),
    ],
)
def test_what_needs_the_teachers_architecture_is_refused_from_the_config_alone(folder, changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        check_stages(config(folder, "new", **changes))
    network = {} if "sharing" in changes else {"network": None}
    check_stages(config(folder, "new", **({**changes, **network} if network else {})))


def test_a_network_that_is_none_is_refused_before_anything_is_loaded(folder):
    def told(network) -> list[str]:
        return list(refusals(config(folder, "new", network=network), recipes=folder))

    assert told(SMALLER) == []
    assert told({"settings": {"layers": 1}})[0].startswith("student.network.settings: UNet2DModel has no setting")
    (said,) = told({"path": "nowhere"})
    assert said.startswith("student.network.path nowhere is no folder of a network or of a pipeline: give one that")
    for network in ({}, {"path": "a", "settings": NARROW}):
        with pytest.raises(ValueError, match="give either `path`"):
            config(folder, "new", network=network)


def test_a_plan_counts_each_role_by_its_own_network(folder):
    text = plan(config(folder, "new"), recipes=folder)
    few = text[text.index("stage 1, few") :]
    millions = {name: float(count) for name, count in re.findall(r"^  (\S.*?)  +([\d.]+) M", few, re.MULTILINE)}
    own, whole = size(folder / "run/student") / 1e6, size(folder / "teacher") / 1e6
    expected = {"generator (trained)": own, "generator average": own, "fake_score (trained)": whole}
    assert {name: millions[name] for name in expected} == pytest.approx(expected, abs=0.0051)
    assert f"a network of its own: {own:.2f} M parameters" in text


@pytest.mark.slow
def test_the_memory_of_a_card_is_counted_by_each_role_s_own_network(folder, monkeypatch):
    monkeypatch.setattr(meter, "BLOCK", 1)  # bytes are not rounded up
    forecast = forecast_of(config(folder, "new"), 1, card=H100, recipes=folder)
    held = {part.name: part.bytes for part in forecast.parts}
    expected = {role: 4 * size(folder / of) for role, of in (("generator", "run/student"), ("fake_score", "teacher"))}
    for role, count in expected.items():
        assert held[f"{role}: weights"] == count
