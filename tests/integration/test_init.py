"""A run that starts from an earlier student: what it takes, what it leaves, and what it refuses."""

import json

import pytest
import small_run
import tiny
import torch
from encoded import save
from isolated import HERE
from safetensors.torch import load_file, save_file

from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.distillation.initial import check_init
from fastgen.distillation.steps import build_roles
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import teacher_of
from fastgen.errors import CheckpointError, UserError
from fastgen.models.merging import merged
from fastgen.models.roles import taken

CPU = torch.device("cpu")
LAYER = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and `run`, four updates of kd with a student; a transformer and `adapter`, the same."""
    folder = tmp_path_factory.mktemp("init")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    tiny.dit().save_pretrained(folder / "dit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.export.verify.subprocess", HERE)
        distil(config(folder, "run"), recipes=folder)
        distil(transformer(folder, "adapter"), recipes=folder)
    return folder


def config(folder, out, *, objective="kd", **changes):
    train = {"images": 8, "batch": 2, "ema": 0.9, "optim": {"eps": 1e-3, "lr": 1e-2}}
    stages = [{"name": "first", "objective": {"name": objective}, "train": train, **changes.pop("stage", {})}]
    settings = {"out": folder / out, "student": {"steps": [1]}, "checkpoints": {"every": 4}, "stages": stages}
    return small_run.run_config(folder, **{**settings, **changes})


def transformer(folder, out, **changes):
    """A config of adapters of rank 4 on a transformer."""
    settings = {"teacher": {"path": str(folder / "dit")}, "sharing": "lora", "lora": {"rank": 4, "alpha": 2}}
    data = {"source": "noise", "num_classes": 1000}
    return config(folder, out, **{"data": data, **settings, **changes})


def begun(config: Config, role: str = "generator"):
    """What a role of a run's first stage has before it is trained, and the teacher's network."""
    student = Student(config, teacher_of(config, CPU))
    roles = build_roles(student)
    return taken(roles.network(role)), student.teacher_network()


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def averages(checkpoint, start):
    """What a checkpoint holds of the generator."""
    held = {**load_file(checkpoint / "generator.safetensors"), **load_file(checkpoint / "ema.safetensors")}
    return {name.removeprefix(start): value for name, value in held.items()}


def lora(file, rank=2, layer=LAYER, features=16):
    """A LoRA file in peft's plain form, and what it adds to a layer."""
    torch.manual_seed(1)
    down, up = torch.randn(rank, 16), torch.randn(features, rank)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, file)
    return up @ down


def test_a_generator_starts_with_the_weights_of_an_exported_student_and_no_other_role_does(folder):
    settings = config(folder, "new", objective="dmd2", init=str(folder / "run/student"))
    weights, teacher = begun(settings)
    same(weights, load_file(folder / "run/student/unet/diffusion_pytorch_model.safetensors"))
    same(begun(settings, "fake_score")[0], teacher.state_dict())
    carried = config(folder, "new", objective="dmd2", init=settings.init, stage={"carry": {"fake_score": "generator"}})
    same(begun(carried, "fake_score")[0], weights)


@pytest.mark.parametrize("place", ["run", "run/checkpoints/00000008"])
def test_a_generator_starts_with_the_average_in_a_checkpoint(folder, place):
    weights, _ = begun(config(folder, "new", init=str(folder / place)))
    same(weights, averages(folder / "run/checkpoints/00000008", "net."))


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4, "alpha": 8}}, {"sharing": "full"}])
def test_an_adapter_in_a_checkpoint_is_gone_on_with_or_merged(folder, changes):
    settings = transformer(folder, "new", init=str(folder / "adapter"), **changes)
    weights, teacher = begun(settings)
    expected = merged(teacher, averages(folder / "adapter/checkpoints/00000008", "adapter."), alpha=2).state_dict()
    found = weights if settings.sharing == "full" else merged(teacher, weights, alpha=settings.lora.alpha).state_dict()
    same(found, expected)
    assert not torch.equal(expected[f"{LAYER}.weight"], teacher.state_dict()[f"{LAYER}.weight"])


@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_a_lora_of_a_lower_rank_is_merged_or_begins_an_adapter(folder, tmp_path, sharing):
    change = lora(tmp_path / "style.safetensors")
    weights, teacher = begun(transformer(folder, "new", init=str(tmp_path / "style.safetensors"), sharing=sharing))
    plain = teacher.state_dict()
    found = weights if sharing == "full" else merged(teacher, weights, alpha=2).state_dict()
    same(found, {**plain, f"{LAYER}.weight": plain[f"{LAYER}.weight"] + change})
    if sharing == "lora":
        assert weights[f"{LAYER}.lora_A.weight"][2:].abs().min() > 0, "directions that could never be trained"


def test_an_exported_lora_is_gone_on_with_or_merged(tmp_path, verified_here):
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    save(tmp_path / "prompts.txt", "fox\nowl\n")
    changes = {
        "teacher": {"path": str(tmp_path / "sd")},
        "data": {"source": "prompts", "path": str(tmp_path / "prompts.txt")},
        "student": {"steps": [1], "height": 16, "width": 16},
        "sharing": "lora",
        "cache": None,
    }
    before = config(tmp_path, "before", lora={"rank": 2, "alpha": 3}, **changes)
    distil(before, recipes=tmp_path)
    settings = config(tmp_path, "after", lora={"rank": 3}, init=str(before.out / "student-lora"), **changes)
    weights, teacher = begun(settings)
    trained = load_file(before.out / "student/unet/diffusion_pytorch_model.safetensors")
    trained.pop("time_embedding.cond_proj.weight")  # of zeros, which keeps stock calls from guiding
    same(merged(teacher, weights, alpha=settings.lora.alpha).state_dict(), trained)
    file = str(before.out / "student-lora/pytorch_lora_weights.safetensors")
    same(begun(settings.model_copy(update={"sharing": "full", "init": file}))[0], trained)
    whole = settings.model_copy(update={"sharing": "full", "init": str(before.out / "student")})
    check_init(whole)
    same(begun(whole)[0], trained)


def test_what_is_no_student_of_this_teacher_is_refused_by_name(folder, tmp_path):
    lora(tmp_path / "high.safetensors", rank=5)
    lora(tmp_path / "other.safetensors", features=17)
    lora(tmp_path / "norm.safetensors", layer="transformer_blocks.0.norm1.linear", features=96)
    tiny.class_conditional(size=8, channels=3).save_pretrained(tmp_path / "wide")
    refused = {
        "rank 5, and lora.rank is 4: set lora.rank=5": transformer(folder, "new", init=f"{tmp_path}/high.safetensors"),
        "changes transformer_blocks.0.norm1.linear, which this run does not: name it in lora.targets": transformer(
            folder, "new", init=f"{tmp_path}/norm.safetensors"
        ),
        "no LoRA of this teacher: .*cannot be added": transformer(folder, "new", init=f"{tmp_path}/other.safetensors"),
        "a whole network, and under sharing=lora": transformer(folder, "new", init=str(folder / "dit")),
        r"another network.*conv_in\.weight is \[.*, 3, 3, 3\], not": config(folder, "new", init=str(tmp_path / "wide")),
        "a run with another teacher": transformer(folder, "new", init=str(folder / "run")),
        "does not exist": config(folder, "new", init=str(tmp_path / "nothing")),
        "no exported student": config(folder, "new", init=str(tmp_path)),
    }
    for words, settings in refused.items():
        with pytest.raises(UserError, match=words):
            begun(settings)


def test_a_dry_run_sees_another_network_by_its_files(folder, tmp_path):
    tiny.class_conditional(size=8, channels=3).save_pretrained(tmp_path / "wide")
    check_init(config(folder, "new", init=str(folder / "run/student")))
    with pytest.raises(UserError, match=r"another network.*unet\.conv_in\.weight"):
        check_init(config(folder, "new", init=str(tmp_path / "wide")))


def test_a_student_of_another_kind_of_teacher_is_refused(folder, tmp_path):
    notes = json.loads((folder / "run/student/fastgen.json").read_text())
    place = tmp_path / "other"
    tiny.class_conditional(size=16, channels=1).save_pretrained(place)
    notes["stops"]["1"][0]["q"] += 0.5
    (place / "fastgen.json").write_text(json.dumps(notes))
    with pytest.raises(UserError, match="of a teacher of another kind: of this one q is"):
        begun(config(folder, "new", init=str(place)))


def test_a_run_from_an_exported_student_says_so_trains_and_knows_it_again(folder, tmp_path, verified_here, capsys):
    settings = config(tmp_path, "new", init=str(folder / "run/student"), teacher={"path": str(folder / "teacher")})
    distil(settings, recipes=folder)
    assert "the generator starts from the pipeline" in capsys.readouterr().err
    lines = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    assert "its weights are taken" in lines[0]["note"]
    state = json.loads((settings.out / "checkpoints/00000008/state.json").read_text())
    assert list(state["made_of"]["init"]) == ["unet/diffusion_pytorch_model.safetensors"]
    assert (settings.out / "student/fastgen.json").is_file()
    other = settings.model_copy(update={"init": str(folder / "teacher")})
    with pytest.raises(CheckpointError, match="init was"):
        distil(other, recipes=folder, resume=True)
