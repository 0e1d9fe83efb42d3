"""A base in float8, int8 or nf4, from its teacher's files to a verified LoRA."""

import json
from functools import wraps
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_stages
from fastgen.distillation.distil import distil
from fastgen.engine.roles import _base
from fastgen.errors import UserError
from fastgen.models import quantised
from fastgen.models.adapters import alias
from fastgen.models.offload import BlockSwap, blocks_of
from fastgen.models.pipelines import teacher
from fastgen.models.pipelines.codec import codec_of
from fastgen.models.pipelines.components import denoisers_of
from fastgen.models.pipelines.source import TeacherSource
from fastgen.models.pipelines.teacher import load_teacher
from fastgen.models.quantised import quantise

NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Coarse(nn.Linear):
    """A linear layer with weights in int8, as a stand-in for those of bitsandbytes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.scale = float(layer.weight.detach().float().abs().max()) / 127
        weight = (layer.weight.detach().float() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.to(x.dtype) if self.bias is not None else None
        return nn.functional.linear(x, (self.weight.float() * self.scale).to(x.dtype), bias)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "_quantised", lambda layer, kind, device: Coarse(layer).to(device))
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: name)


def write(folder: Path, *, device: str = "cpu", kind: str = "int8", **changes: object) -> Path:
    """A teacher with attention 32 wide, and the config of a run with a preview at its end."""
    config = {
        "out": str(folder / "run"),
        "device": device,
        "cache": None,
        "teacher": {"path": str(folder / "teacher")},
        "student": {"steps": [2], "height": 8, "width": 8},
        "data": {"source": "prompts", "path": str(folder / "prompts.txt")},
        "sharing": "lora",
        "lora": {"rank": 2, "base": kind},
        "pairs": {"count": 2, "steps": 2},
        "log": {"trackers": [], "previews": 1, "every": 1},
        "stages": [
            {"objective": {"name": "kd"}, "train": TRAIN},
            {"objective": {"name": "dmd2", "gan": 0, "ratio": 1, "guidance": 2.0}, "train": TRAIN},
        ],
        **changes,
    }
    tiny.stable_diffusion().save_pretrained(folder / "teacher")
    (folder / "prompts.txt").write_text("a red fox\nblue jay\n")
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder / "run.yaml"


TRAIN = {"images": 2, "batch": 2, "precision": "bf16", "optim": {"lr": 1e-2}, "gradient_checkpointing": True}


def trains_previews_and_verifies(folder: Path, caplog: pytest.LogCaptureFixture, **settings: str) -> None:
    """Two stages: the second one's roles are built on a network that already is quantised."""
    caplog.set_level("INFO", "fastgen")
    distil(load(write(folder, **settings)), recipes=folder)
    assert caplog.text.count("verified") == 2
    assert len(list((folder / "run" / "previews").glob("[0-9]*.png"))) == 2


@pytest.mark.usefixtures("verified_here", "few_previews")
def test_a_quantised_base_trains_with_pairs_previews_and_verifies_in_little_memory(tmp_path, caplog, monkeypatch):
    fetch, fetched = BlockSwap._fetch, set()
    monkeypatch.setattr(BlockSwap, "_fetch", lambda swap, name: fetched.add(name) or fetch(swap, name))
    trains_previews_and_verifies(tmp_path, caplog, kind="fp8", memory="low")
    assert len(fetched) == len(list(blocks_of(tiny.stable_diffusion().unet)))


@NEEDS_CUDA
@pytest.mark.gpu
@pytest.mark.usefixtures("verified_here", "few_previews")
@pytest.mark.parametrize(("kind", "memory"), [("fp8", "ample"), ("fp8", "low"), ("bf16", "low")])
def test_it_does_on_a_gpu(kind, memory, tmp_path, caplog):
    trains_previews_and_verifies(tmp_path, caplog, kind=kind, memory=memory, device="cuda")


@NEEDS_BITSANDBYTES
@pytest.mark.slow
@pytest.mark.usefixtures("verified_here", "few_previews")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_does_on_the_cpu(kind, tmp_path, caplog):
    trains_previews_and_verifies(tmp_path, caplog, kind=kind)


@NEEDS_BITSANDBYTES
@NEEDS_CUDA
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_does_on_a_gpu(kind, tmp_path, caplog):
    trains_previews_and_verifies(tmp_path, caplog, kind=kind, device="cuda")


@pytest.mark.usefixtures("stand_in")
def test_layers_are_quantised_before_the_network_goes_to_the_device(tmp_path, monkeypatch):
    write(tmp_path)
    loaded_on, seen = [], []
    load_here, moved = teacher.load, teacher.moved
    monkeypatch.setattr(
        teacher, "load", lambda *args, device, **kw: loaded_on.append(device) or load_here(*args, device="cpu", **kw)
    )
    monkeypatch.setattr(
        teacher, "moved", lambda pipe, *place, **kw: seen.append(kinds(pipe.unet)) or moved(pipe, *place, **kw)
    )
    source = TeacherSource(path=str(tmp_path / "teacher"))
    pipe = load_teacher(source, device=torch.device("cpu"), auto=torch.bfloat16, quantised="int8")
    assert loaded_on == ["cpu"]
    assert seen == [kinds(pipe.unet)] == [{torch.int8, torch.bfloat16}]
    assert kinds(pipe.vae) == {torch.bfloat16}


def kinds(net: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in net.parameters()}


def test_a_codec_is_found_beside_a_network_that_cannot_run(monkeypatch):
    pipe = tiny.stable_diffusion()
    whole = codec_of(pipe, {"prompt": ["a"], "height": 8, "width": 8})
    for network in denoisers_of(pipe).values():
        monkeypatch.setattr(type(network), "forward", broken(type(network).forward))
    found = codec_of(pipe, {"prompt": ["a"], "height": 8, "width": 8})
    assert torch.equal(found.wiring.source, whole.wiring.source)
    assert torch.equal(found.wiring.scale, whole.wiring.scale)


def broken(forward):
    @wraps(forward)
    def refuse(*_args, **_kwargs):
        raise AssertionError("the denoiser was run")

    return refuse


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_alias_holds_no_weight_again(kind):
    net = quantise(tiny.stable_diffusion().unet, kind, "cpu")
    with torch.no_grad():
        before = net(*CALL).sample
        other = alias(net)
        assert torch.equal(other(*CALL).sample, before)
    assert all(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(a is b for a, b in zip(quantised.beside_weights(net), quantised.beside_weights(other), strict=True))
    assert quantised.beside_weights(net)


CALL = (torch.randn(1, 4, 4, 4).bfloat16(), torch.tensor([500.0]), torch.randn(1, 3, tiny.TEXT_WIDTH).bfloat16())


def test_what_quantised_layers_cannot_do_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path)
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lora\.base=int8 needs bitsandbytes: pip install 'fastgen\[quantised\]'"):
        check_stages(load(file))
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: name)
    check_stages(load(file))
    with pytest.raises(UserError, match=r"lora\.norms.*set lora\.norms=false or lora\.base=bf16"):
        check_stages(load(file, ["lora.norms=true"]))


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_derivatives_that_quantised_layers_lack_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: name)
    exact = [{"objective": {"name": "scm"}, "train": TRAIN}]
    images = {"source": "digits"}
    with pytest.raises(UserError, match=rf"exact derivatives.*lora\.base={kind} .*objective\.derivative_step=0\.03"):
        check_stages(load(write(tmp_path, kind=kind, stages=exact, data=images)))
    exact[0]["objective"]["derivative_step"] = 0.03
    check_stages(load(write(tmp_path, kind=kind, stages=exact, data=images)))


def test_second_derivatives_that_float8_lacks_are_refused(tmp_path):
    penalised, train = {"name": "dmd2", "gan": {"weight": 1e-2, "r1": 1.0}}, TRAIN | {"gradient_checkpointing": False}
    told = {"stages": [{"objective": penalised, "train": train}], "data": {"source": "digits"}}
    with pytest.raises(UserError, match=r"gan\.r1, a second derivative.*lora\.base=fp8.*gan\.approximate_r1"):
        check_stages(load(write(tmp_path, kind="fp8", **told)))
    check_stages(load(write(tmp_path, kind="bf16", **told)))


@pytest.mark.parametrize("alone", [True, False], ids=["lora", "scores"])
def test_a_quantised_network_leaves_the_teachers_as_it_was_and_copies_no_layer(alone):
    net = tiny.stable_diffusion().unet
    before = {name: (value, value.data_ptr(), value.clone()) for name, value in net.state_dict().items()}
    base = _base(net, "fp8", alone=alone)
    assert kinds(base) == {torch.uint8, torch.bfloat16}
    for name, value in net.state_dict().items():
        held, place, values = before[name]
        assert value.dtype == held.dtype == torch.float32
        assert value.data_ptr() == place
        assert torch.equal(value, values)


def test_what_swapped_blocks_cannot_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: name)
    check_stages(load(write(tmp_path, kind="fp8", memory="low")))
    student = {"steps": [1], "height": 8, "width": 8}
    for kind, train, message in (
        ("nf4", {}, r"lora\.base=nf4 cannot leave the GPU: set lora\.base=fp8, or memory=ample"),
        ("fp8", {"gradient_checkpointing": False}, r"stage 'kd' keeps them.*set train\.gradient_checkpointing=true"),
        ("fp8", {"gradient_checkpointing": "auto"}, r"stage 'kd' keeps them.*set train\.gradient_checkpointing=true"),
        ("bf16", {"sharding": "full"}, r"stage 'kd' has train\.sharding=full: set train\.sharding=none"),
        ("fp8", {"compile": True}, r"stage 'kd' has train\.compile.*set train\.compile=false"),
    ):
        stages = [{"objective": {"name": "kd"}, "train": TRAIN | train}]
        with pytest.raises(UserError, match=message):
            check_stages(load(write(tmp_path, kind=kind, memory="low", student=student, stages=stages)))
        check_stages(load(write(tmp_path, kind=kind, student=student, stages=stages)))
