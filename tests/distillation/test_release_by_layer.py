"""A release layer by layer writes the very files of a whole network, and keeps nothing of it."""

import copy
import gc
import math
import weakref
from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import nn

from fastgen.config.yaml_file import load
from fastgen.distillation import release
from fastgen.distillation.steps import build_stage, export_student
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import teacher_of
from fastgen.distillation.verifier import Verifier
from fastgen.engine.run import Trained
from fastgen.export import by_layer
from fastgen.export.unguided import unguided
from fastgen.models.casting import dtype_at
from fastgen.models.made import Made
from fastgen.models.pipelines.source import DTYPES
from fastgen.models.targets import find_targets

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SCALE = 1.5  # alpha over rank
LORA = ("sharing=lora", "lora.rank=2", f"lora.alpha={2 * SCALE}", "lora.norms=true")
USUAL = [
    ("full", "fp32", "fp16", 1e-4),
    ("lora", "bf16", "auto", 1e-4),
    ("lora", "bf16", "auto", 10.0),
    ("experts", "bf16", "auto", 10.0),
]
CASES = [
    pytest.param(*case, marks=[] if case in USUAL else [pytest.mark.slow])
    for case in product(("full", "lora", "experts"), ("bf16", "fp32"), ("auto", "bf16", "fp16", "fp32"), (1e-4, 10.0))
]
"""The trained weights whole or as an adapter, the teacher's dtype, `export.dtype`, the size of the update."""


@pytest.fixture(scope="module")
def student_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Student]:
    @cache
    def made(sharing: str, held: str) -> Student:
        here = tmp_path_factory.mktemp("student")
        family = FAMILIES["wan_of_two" if sharing == "experts" else "stable_diffusion"]
        family.build().to(DTYPES[held]).save_pretrained(here / "teacher")
        (here / "prompts.txt").write_text("a red fox\n")
        config = {
            "out": str(here / "run"),
            "device": "cpu",
            "cache": None,
            "teacher": {"path": str(here / "teacher"), "dtype": held},
            "student": {"steps": [2], "height": 16, "width": 16},
            "data": {"source": "prompts", "path": str(here / "prompts.txt")},
            "objective": {"name": "dmd2", "gan": 0, "ratio": 1, "guidance": 2.0},
            "train": {"images": 4, "batch": 2},
            "log": {"trackers": [], "previews": 0},
        }
        config = load(config, LORA if sharing == "lora" else ())
        return Student(config, teacher_of(config, torch.device("cpu")))

    return made


def left_by_training(student: Student, *, size: float) -> dict[str, torch.Tensor]:
    """The weights of a whole network, or an adapter with norms."""
    net = student.pipeline.network
    torch.manual_seed(0)
    if student.config.sharing == "full":
        return {name: p.float() + size * torch.randn(p.shape) for name, p in net.state_dict().items()}
    left = {"conv_norm_out.weight": net.conv_norm_out.weight.float() + size}
    for name in find_targets(net, student.config.lora.targets):
        out, *given = net.get_submodule(name).weight.flatten(1).shape
        left |= {f"{name}.lora_A.weight": torch.randn(2, *given), f"{name}.lora_B.weight": size * torch.randn(out, 2)}
    return left


def whole(student: Student, left: dict[str, torch.Tensor]) -> nn.Module:
    """The trained network in float32, all of it at once."""
    net = copy.deepcopy(student.pipeline.network).float()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            layer = name.removesuffix(".weight")
            if f"{layer}.lora_B.weight" in left:
                update = left[f"{layer}.lora_B.weight"] @ left[f"{layer}.lora_A.weight"] * SCALE
                weight += update.view_as(weight)
            elif name in left:
                weight.copy_(left[name])
    return net


def in_files_dtypes(net: nn.Module, before: nn.Module, half: torch.dtype, *, auto: bool) -> nn.Module:
    """The rule of `export.dtype` in plain float32."""
    if half == FP32:
        return net
    base = dict(before.named_parameters())
    wanted = {name: dtype_at(net, name, half) for name in base}
    gaps = {name: (p.to(wanted[name]).float() - p).norm() for name, p in net.named_parameters()}
    updates = {name: (p - base[name].float()).norm() for name, p in net.named_parameters()}
    trained = [name for name, update in updates.items() if update]
    share = math.hypot(*(gaps[n] for n in trained)) / math.hypot(*(updates[n] for n in trained))
    for name, p in net.named_parameters():
        keeps = auto and gaps[name] and not (name in trained and share <= 0.01)
        exact = next((d for d in (BF16, FP16) if torch.equal(p.to(d).float(), p)), FP32)
        p.data = p.data.to(exact if keeps else wanted[name])
    return net


@pytest.mark.parametrize(("sharing", "held", "choice", "size"), CASES)
def test_the_files_are_those_of_a_whole_network(sharing, held, choice, size, student_of, tmp_path, monkeypatch):
    monkeypatch.setattr(Verifier, "__call__", lambda *_, **__: None)
    monkeypatch.setattr(release, "makes_lora", lambda *_: False)
    monkeypatch.setattr(by_layer, "LARGEST", "20KB")
    student = copy.copy(student_of(sharing, held))
    dtype = student.config.export.model_copy(update={"dtype": choice})
    student.config = student.config.model_copy(update={"out": tmp_path / "run", "export": dtype})
    left = left_by_training(student, size=size)
    release.release(student, Trained({"dmd2": left}))

    half = DTYPES[held if choice == "auto" else choice]
    before, net = student.pipeline.network, whole(student, left)
    net = in_files_dtypes(net, before, half, auto=choice == "auto")
    pipe = unguided(student.pipeline.student(net, student.schedules[0].scheduler))
    found = set[str]()
    for part in ("unet", "transformer", "transformer_2"):
        if part in pipe.components:
            pipe.components[part].save_pretrained(tmp_path / part, max_shard_size="20KB")
            expected = {file.name: file.read_bytes() for file in (tmp_path / part).glob("diffusion*")}
            assert {f.name: f.read_bytes() for f in (student.config.exported / part).glob("diffusion*")} == expected
            found |= expected.keys()
    assert len(found) > 2
    assert (tmp_path / "run/student/manifest.json").is_file()


def test_a_file_is_byte_for_byte_that_of_safetensors(tmp_path):
    torch.manual_seed(0)
    drawn = {str(dtype): (9 * torch.randn(3, 5)).to(dtype) for dtype in by_layer.KINDS}
    odd = {
        "é": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "a.b": torch.randn(4, 6).T,
        "Z": torch.ones(3, dtype=BF16),
    }
    tensors = drawn | odd
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a", {"format": "pt"})
    outline = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    by_layer.write_safetensors(
        tmp_path / "b", outline | {"Z": odd["Z"]}, {n: t for n, t in tensors.items() if n != "Z"}.__getitem__
    )
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert load_file(tmp_path / "b").keys() == tensors.keys()


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_nothing_keeps_a_network_that_was_released(sharing, student_of, tmp_path, monkeypatch):
    student, made, whole_of = copy.copy(student_of(sharing, "bf16")), list[weakref.ref](), Made.whole
    teachers = {id(p) for p in student.pipeline.network.parameters()}

    def watched(network: Made, device: str) -> nn.Module:
        net = whole_of(network, device)
        own = [parameter for parameter in net.parameters() if id(parameter) not in teachers]
        made.extend(weakref.ref(thing) for thing in (net, network, *own))
        return net

    monkeypatch.setattr(Made, "whole", watched)
    student.config = student.config.model_copy(update={"out": tmp_path / "run"})
    stage = build_stage(student)
    stage.cycle()
    made += [weakref.ref(student), weakref.ref(stage)]
    export_student(student, stage)
    del student, stage
    gc.collect()
    assert len(made) > 4
    assert not [reference() for reference in made if reference() is not None]
