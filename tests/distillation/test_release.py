"""A release: nothing twice in memory, a smaller size where there is no room, and a failure that is none of the run."""

import logging
import weakref
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from peaks import peak_bytes
from torch import nn

from fastgen.config.yaml_file import load
from fastgen.distillation import release as module
from fastgen.distillation import verifier
from fastgen.distillation.distil import distil
from fastgen.distillation.release import release
from fastgen.distillation.steps import build_stage, export_student
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import teacher_of
from fastgen.distillation.verifier import Verifier
from fastgen.engine.run import Trained
from fastgen.errors import NoRoomError, NotInPartsError, VerificationError
from fastgen.export.by_layer import write_safetensors
from fastgen.export.fidelity import saved_as
from fastgen.export.place import Place
from fastgen.export.verify import Agreement, verify
from fastgen.models.adapters import alias
from fastgen.models.casting import cast, renewed
from fastgen.models.made import Made
from fastgen.models.pipelines.heads import StepHeads
from fastgen.models.pipelines.loading import dtypes_in
from fastgen.models.pipelines.source import DTYPES, TeacherSource
from fastgen.models.pipelines.teacher import held_exactly, load_teacher

pytestmark = pytest.mark.usefixtures("verified_here")
IN_PARTS = Place("cpu", whole=False)
LORA = ("sharing=lora", "lora.rank=2", "teacher.dtype=bf16")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "teacher"
    FAMILIES["stable_diffusion"].build().save_pretrained(folder)
    return folder


@pytest.fixture
def student(teacher: Path, tmp_path: Path) -> Student:
    return student_on(teacher, tmp_path)


def student_on(teacher: Path, tmp_path: Path, overrides: tuple[str, ...] = ()) -> Student:
    (tmp_path / "prompts.txt").write_text("a red fox\n")
    config = load(
        {
            "out": str(tmp_path / "run"),
            "device": "cpu",
            "cache": None,
            "teacher": {"path": str(teacher)},
            "student": {"steps": [2], "height": 16, "width": 16},
            "data": {"source": "prompts", "path": str(tmp_path / "prompts.txt")},
            "objective": {"name": "dmd2", "gan": 0, "ratio": 1, "guidance": 2.0},
            "train": {"images": 4, "batch": 2},
            "log": {"trackers": [], "previews": 0},
        },
        overrides,
    )
    return Student(config, teacher_of(config, torch.device(config.device)))


def trained(student: Student) -> Trained:
    """The teacher's weights, moved a little."""
    weights = {name: value + 1e-3 * torch.randn_like(value) for name, value in weights_of(student).items()}
    return Trained({"dmd2": weights})


def weights_of(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.pipeline.network.state_dict().items()}


def test_of_a_network_to_be_saved_one_layer_at_a_time_is_held(tmp_path):
    net = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16)))
    one = 4 * 256**2
    kept = {f"{i}.weight": 1e-3 for i in range(12)}  # an update far below what bf16 holds
    doubled = Made(net, lambda _, tensor: 2 * tensor)
    assert peak_bytes(lambda: saved_as(doubled, kept, half=torch.bfloat16, choice="auto")) <= 4 * one
    saved, file = saved_as(doubled, kept, half=torch.bfloat16, choice="auto"), tmp_path / "net.safetensors"
    assert peak_bytes(lambda: write_safetensors(file, saved.outline.state_dict(), saved.network.__getitem__)) <= 3 * one
    assert dtypes_in(file) == {torch.float32}


def test_weights_of_a_whole_network_are_not_copied(student):
    weights = weights_of(student)
    held = sum(value.nbytes for value in weights.values())
    assert peak_bytes(lambda: student.trained(weights).whole("cpu")) < held / 10
    made = dict(student.trained(weights).whole("cpu").named_parameters())
    assert all(made[name].data_ptr() == value.data_ptr() for name, value in weights.items() if name in made)
    assert not any(made[name] is p for name, p in student.pipeline.network.named_parameters())


def test_parts_that_are_there_are_not_read_again(teacher):
    whole = load_teacher(TeacherSource(path=str(teacher)), device="cpu")
    parts = {"text_encoder": whole.text_encoder, "vae": whole.vae}
    again = load_teacher(TeacherSource(path=str(teacher)), device="cpu", parts=parts)
    assert again.text_encoder is whole.text_encoder
    assert again.unet is not whole.unet


def test_without_room_a_smaller_size_is_verified(student, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "fastgen")
    monkeypatch.setattr("fastgen.models.pipelines.probe.MOST_PIXELS", 8)
    sizes: list[int] = []

    def cramped(*args, **told):
        sizes.append(args[2].calls[0]["height"])
        if sizes[-1] > 8:
            raise NoRoomError("out of memory")
        return verify(*args, **told)

    monkeypatch.setattr(verifier, "verify", cramped)
    release(student, trained(student))
    assert sizes == [16, 8]
    assert "at 2 steps at height 8 width 8, since its own size has no room here (out of memory)" in caplog.text


@pytest.mark.usefixtures("uncollected")
def test_a_gpu_is_tried_whole_then_in_parts_then_at_a_smaller_size(student, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "fastgen")
    monkeypatch.setattr("fastgen.models.pipelines.probe.MOST_PIXELS", 8)
    monkeypatch.setattr(module, "places", lambda *_, **__: [Place("cpu"), IN_PARTS])
    tried: list[tuple[Place, int]] = []
    left = list[weakref.ref]()

    def cramped(*args, place):
        tried.append((place, args[2].calls[0]["height"]))
        assert all(model() is None for model in left), "what was tried before takes memory"
        model = args[2].model()
        model.itself = [model]
        left.append(weakref.ref(model))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("out of memory")
        if len(tried) == 2:
            raise NoRoomError("still out of memory")
        return [Agreement(2, 0.0)]

    monkeypatch.setattr(verifier, "verify", cramped)
    release(student, trained(student))
    assert tried == [(Place("cpu"), 16), (IN_PARTS, 16), (IN_PARTS, 8)]
    told = "height 8 width 8, since its own size has no room here (out of memory), on cpu, a part of the weights at a"
    assert told in caplog.text


@pytest.mark.parametrize("room", [True, False])
def test_what_cannot_be_in_parts_is_verified_on_the_cpu_at_last(student, monkeypatch, caplog, room):
    caplog.set_level(logging.INFO, "fastgen")
    monkeypatch.setattr("fastgen.models.pipelines.probe.MOST_PIXELS", 8)
    monkeypatch.setattr(module, "places", lambda *_, **__: [IN_PARTS])
    tried: list[tuple[Place, int]] = []

    def undivided(*args, place):
        tried.append((place, args[2].calls[0]["height"]))
        if not place.whole:
            raise NotInPartsError("its layers are called by themselves")
        if tried[-1][1] == 16 and not room:
            raise NoRoomError("out of memory")
        return [Agreement(2, 0.0)]

    monkeypatch.setattr(verifier, "verify", undivided)
    release(student, trained(student))
    assert tried == [(IN_PARTS, 16), (Place("cpu"), 16), (Place("cpu"), 8)][: 2 if room else 3]
    assert "difference 0.0e+00" in caplog.text
    assert "not verified" not in caplog.text


@pytest.mark.parametrize(("room", "divisible", "whole"), [(1.3, True, [True, False]), (1.1, True, [False])])
def test_what_a_gpu_has_room_for_is_counted_over_all_parts_in_float32(student, monkeypatch, room, divisible, whole):
    pipe = student.pipeline.pipe
    count = sum(p.numel() for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (int(room * 4 * count), 10**12))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    student.device = torch.device("cuda")
    assert [place.whole for place in module._places(student, divisible=divisible)] == whole
    assert module._places(student, divisible=False)[0].device == ("cuda" if room > 1.2 else "cpu")
    student.device = torch.device("cpu")
    assert module._places(student, divisible=divisible) == [Place("cpu")]


def test_a_student_with_a_last_layer_for_each_step_is_not_divided(student, monkeypatch):
    conv, asked = student.pipeline.network.conv_out.weight, list[bool]()
    monkeypatch.setattr(module, "places", lambda *_, divisible: asked.append(divisible) or [Place("cpu")])
    monkeypatch.setattr(Verifier, "__call__", lambda *_, **__: None)
    for heads in (None, StepHeads("unet.conv_out", {2: torch.stack([conv, conv])})):
        monkeypatch.setattr(Student, "heads", lambda *_, heads=heads: heads)
        release(student, trained(student))
    assert asked == [True, False]


@pytest.mark.usefixtures("in_parts_here")
@pytest.mark.parametrize("base", ["auto", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_lora_is_released_in_parts(teacher, tmp_path, monkeypatch, caplog, base):
    caplog.set_level(logging.INFO, "fastgen")
    student = student_on(teacher, tmp_path, (*LORA, f"lora.base={base}"))
    stage = build_stage(student)
    stage.cycle()
    monkeypatch.setattr(module, "places", lambda *_, **__: [IN_PARTS])
    monkeypatch.setattr(Made, "whole", lambda *_: pytest.fail("a whole network in float32"))
    export_student(student, stage)
    assert caplog.text.count("at 2 steps, on cpu, a part of the weights at a time: difference") == 2


@pytest.mark.gpu
@pytest.mark.parametrize("base", ["auto", "fp8"])
def test_a_card_without_room_releases_a_lora_in_parts(teacher, tmp_path, monkeypatch, caplog, base):
    caplog.set_level(logging.INFO, "fastgen")
    student = student_on(teacher, tmp_path, ("device=cuda", *LORA, f"lora.base={base}"))
    stage = build_stage(student)
    stage.cycle()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 10**12))
    monkeypatch.setattr(Made, "whole", lambda *_: pytest.fail("a whole network in float32"))
    export_student(student, stage)
    assert caplog.text.count(f"on {student.device}, a part of the weights at a time: difference") == 2


def test_where_nothing_fits_the_student_is_there_unverified(student, monkeypatch, caplog):
    def full(*_, **__):
        raise NoRoomError("out of memory")

    monkeypatch.setattr(verifier, "verify", full)
    release(student, trained(student))
    assert "is written, but it was not verified, which needs more memory" in caplog.text
    assert (student.config.exported / "model_index.json").is_file()


def test_an_export_that_differs_is_said_after_all_is_written(student, monkeypatch):
    monkeypatch.setattr("fastgen.export.verify.TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match=r"training is over and everything was written, but.*sample as it was"):
        release(student, trained(student))
    assert (student.config.exported / "model_index.json").is_file()
    assert VerificationError.exit_code not in (0, 1, 2, 3, 4)


@pytest.mark.slow
def test_a_run_reports_although_its_export_differs(student, monkeypatch):
    reported: list[object] = []
    monkeypatch.setattr("fastgen.export.verify.TOLERANCE", -1.0)
    watcher = type("Watcher", (), {"yardstick": None, "report": lambda _, trained: reported.append(trained)})()
    monkeypatch.setattr("fastgen.distillation.distil._monitor", lambda *_, **__: watcher)
    with pytest.raises(VerificationError):
        distil(student.config, recipes=Path())
    assert len(reported) == 1


@pytest.mark.parametrize(("saved", "dtype", "exact"), [("bf16", "bf16", True), ("fp16", "bf16", False)])
def test_a_network_that_holds_what_its_files_do_is_not_read_again(saved, dtype, exact, tmp_path):
    pipe = FAMILIES["stable_diffusion"].build().to(DTYPES[saved])
    pipe.save_pretrained(tmp_path / "teacher")
    source = TeacherSource(path=str(tmp_path / "teacher"), dtype=dtype)
    loaded = load_teacher(source, device="cpu")
    assert held_exactly(source, loaded, DTYPES[dtype]) is exact
    if exact:
        cast(loaded.unet, torch.float32)
        assert held_exactly(source, loaded, DTYPES[dtype])
        cast(loaded.unet, torch.float16)
        assert not held_exactly(source, loaded, DTYPES[dtype])


def test_a_network_of_its_own_in_float32_is_no_part_of_the_teachers():
    net = FAMILIES["stable_diffusion"].build().unet.to(torch.bfloat16)
    size = 4 * sum(p.numel() for p in net.parameters())
    made: list[nn.Module] = []
    assert (
        peak_bytes(lambda: made.append(renewed(alias(net), lambda _, x: x.to(torch.float32, copy=True)))) < 1.1 * size
    )
    before = {name: p.clone() for name, p in net.named_parameters()}
    for name, p in made[0].named_parameters():
        assert torch.equal(p, before[name].float())
        p.data.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
