"""An export keeps what was trained: sound weights, every part of the update, and the teacher's own files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from published import publish
from safetensors import safe_open
from torch import nn

from fastgen.cli import main
from fastgen.config.schema import Config
from fastgen.distillation import release
from fastgen.errors import UserError
from fastgen.export.export import export
from fastgen.export.fidelity import check_adapter, check_sound, saved_as
from fastgen.export.frozen import frozen_parts, touched
from fastgen.models.made import Made
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.notes import Notes

BF16, FP16 = torch.bfloat16, torch.float16


def network(*, base: float = 1.0, update: float = 0.0) -> tuple[nn.Module, dict[str, float]]:
    """Two layers whose base bf16 holds exactly; the first was trained. And the norm of its update."""
    net = nn.ModuleDict({"trained": nn.Linear(64, 64, bias=False), "left": nn.Linear(64, 64, bias=False)})
    for weight in net.parameters():
        weight.data = (base * torch.randn_like(weight)).to(BF16).float()
    added = update * torch.randn(64, 64)
    net["trained"].weight.data += added
    return net, {"trained.weight": float(added.norm())}


# The dtype that keeps the update


def test_an_update_below_the_steps_of_half_precision_is_kept_in_float32():
    net, updates = network(update=1e-4)
    saved = saved_as(Made(net), updates, half=BF16, choice="auto")
    assert {name: p.dtype for name, p in saved.network.named_parameters()} == {
        "trained.weight": torch.float32,
        "left.weight": BF16,
    }
    assert saved.exact
    assert saved.lost == 0
    assert 0.9 < saved.if_half < 1.5
    assert "half precision would lose" in saved.notice()


def test_an_update_that_half_precision_holds_is_saved_in_it():
    net, updates = network(base=0.0, update=1.0)
    saved = saved_as(Made(net), updates, half=BF16, choice="auto")
    assert {p.dtype for _, p in saved.network.named_parameters()} == {BF16}
    right = (net["trained"].weight.to(BF16).float() - net["trained"].weight).norm() / updates["trained.weight"]
    assert saved.lost == pytest.approx(float(right.detach()), rel=1e-5)
    assert 0 < saved.lost < 0.01
    assert not saved.exact


def test_a_chosen_dtype_holds_for_all_and_says_what_it_loses():
    net, updates = network(update=1e-4)
    saved = saved_as(Made(net), updates, half=BF16, choice="bf16")
    assert {p.dtype for _, p in saved.network.named_parameters()} == {BF16}
    assert saved.notice().startswith("WARNING: bfloat16 loses ")
    for half, choice in ((BF16, "fp32"), (torch.float32, "auto")):
        saved = saved_as(Made(net), updates, half=half, choice=choice)
        assert saved.exact
        assert all(torch.equal(saved.network[name], weight) for name, weight in net.named_parameters())


def test_weights_that_the_runs_half_precision_cannot_hold_keep_their_own():
    net, updates = network(update=1e-4)
    net["left"].weight.data = torch.randn(64, 64).to(FP16).float()
    saved = saved_as(Made(net), updates, half=BF16, choice="auto")
    assert saved.network["left.weight"].dtype == FP16
    net["left"].weight.data += 1e-6
    assert saved_as(Made(net), updates, half=BF16, choice="auto").network["left.weight"].dtype == torch.float32


# Sound weights


def test_weights_that_are_no_student_are_refused_by_name(caplog):
    net, _ = network(update=1e-4)
    changed = {"trained.weight": torch.ones(2), "left.weight": torch.zeros(2)}
    assert check_sound(Made(net), changed.items()) == {"trained.weight": pytest.approx(2**0.5)}
    assert check_sound(Made(net), [("left.weight", torch.zeros(2))]) == {}
    assert "left.weight and all others were not changed" in caplog.text
    assert saved_as(Made(net), {}, half=BF16, choice="auto").exact
    net["trained"].weight.data.zero_()
    with pytest.raises(UserError, match=r"trained.weight has nothing but zeros"):
        check_sound(Made(net), changed.items())
    for spoilt in (torch.nan, torch.inf):
        net["left"].weight.data[3, 4] = spoilt
        with pytest.raises(UserError, match=r"left.weight has NaN or infinite values"):
            check_sound(Made(net), changed.items())


def test_a_lora_that_is_none_is_refused_by_name():
    weights = {"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.zeros(2, 1)}
    with pytest.raises(UserError, match=r"a.lora_B.weight has nothing but zeros"):
        check_adapter(weights)
    check_adapter(weights | {"b.lora_B.weight": torch.ones(2, 1)})
    with pytest.raises(UserError, match=r"a.lora_A.weight has NaN"):
        check_adapter(weights | {"a.lora_A.weight": torch.full((1, 2), torch.nan)})


# The teacher's own files


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


RUN = """
out: {here}/run
device: cpu
cache: null
teacher: {{path: {here}/teacher}}
student: {{steps: [2], height: 16, width: 16}}
data: {{source: prompts, path: {here}/prompts.txt}}
objective: {{name: dmd2, gan: 0, ratio: 1, guidance: 2.0}}
train: {{images: 4, batch: 2, ema: 0.5, optim: {{lr: 1e-6}}}}
log: {{trackers: [], previews: 0}}
"""


@pytest.fixture
def here(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("a red fox\nblue jay\n")
    (tmp_path / "run.yaml").write_text(RUN.format(here=tmp_path))
    return tmp_path


SHARED = ["sharing=lora", "lora.rank=2", "train.precision=bf16"]
FULL = ["teacher.dtype=bf16", "train.precision=bf16"]


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("settings", [SHARED, FULL], ids=["lora", "full"])
def test_an_exported_student_is_the_trained_one_among_the_teachers_files(here, settings, monkeypatch, capsys):
    pipe = FAMILIES["stable_diffusion"].build().to(BF16)
    teacher = publish(pipe, here / "teacher", variant="bf16")
    kept, measure = [], release.saved_as
    monkeypatch.setattr(release, "saved_as", lambda net, *args, **told: kept.append(net) or measure(net, *args, **told))
    assert main(["train", "--config", str(here / "run.yaml"), *settings]) == 0
    said = capsys.readouterr().out
    assert "half precision would lose" in said
    assert "from the weights before rounding" not in said
    student = load(here / "run/student", device="cpu")
    trained = dict(kept[0].named_parameters())
    for name, weight in student.unet.named_parameters():
        assert name in trained or name == "time_embedding.cond_proj.weight"
        assert name not in trained or torch.equal(weight, trained[name])
    theirs, ours = files_of(teacher), files_of(here / "run/student")
    for name, data in theirs.items():
        if name.startswith(("tokenizer/", "text_encoder/model", "vae/diffusion")):
            assert ours[name.replace(".bf16", "")] == data, name
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= ours.keys()
    index, before = (json.loads(files["model_index.json"]) for files in (ours, theirs))
    assert {name: index[name] for name in before if name[0] != "_" and name not in ("scheduler", "unet")} == {
        name: value for name, value in before.items() if name[0] != "_" and name not in ("scheduler", "unet")
    }


def test_shards_and_other_formats(tmp_path):
    pipe = FAMILIES["stable_diffusion"].build()
    pipe.save_pretrained(tmp_path / "teacher", variant="fp16", max_shard_size="20KB")
    encoder = tmp_path / "teacher/text_encoder"
    assert len(list(encoder.glob("*fp16-*.safetensors"))) > 1
    (encoder / "pytorch_model.bin").write_bytes(b"a pickle")
    (encoder / "modeling.py").write_text("raise SystemExit")
    frozen = frozen_parts(pipe, tmp_path / "teacher", variant="fp16")
    assert frozen.parts == ("vae", "text_encoder", "tokenizer")
    pipe.save_pretrained(tmp_path / "student")
    for part in frozen.parts:
        shutil.rmtree(tmp_path / "student" / part)
    frozen.copy(tmp_path / "student")
    assert not {f.suffix for f in (tmp_path / "student").rglob("*")} & {".bin", ".py"}
    again = load(tmp_path / "student", device="cpu")
    assert touched(again, pipe) == []
    assert not list((tmp_path / "student").rglob("*fp16*"))


def test_a_part_that_a_lora_changed_is_not_the_teachers(tmp_path):
    pipe = FAMILIES["stable_diffusion"].build()
    pipe.save_pretrained(tmp_path / "teacher")
    changed = load(tmp_path / "teacher", device="cpu")
    next(changed.text_encoder.parameters()).data.add_(1.0)
    assert touched(changed, pipe) == ["text_encoder"]
    frozen = frozen_parts(changed, tmp_path / "teacher", variant=None, but=["text_encoder"])
    assert frozen.parts == ("vae", "tokenizer")
    (tmp_path / "teacher/vae/diffusion_pytorch_model.safetensors").unlink()
    assert frozen_parts(changed, tmp_path / "teacher", variant=None).parts == ("text_encoder", "tokenizer")


def test_parts_that_are_saved_are_named_as_every_version_reads_them(tmp_path):
    pipe = FAMILIES["sdxl"].build()  # made, not loaded: as of a single file
    folder = export(pipe, Notes(steps=(1,)), tmp_path / "student")
    for name in ("text_encoder", "text_encoder_2"):
        with safe_open(folder / name / "model.safetensors", framework="pt") as opened:
            inner = {".".join(key.split(".")[:2]) for key in opened.keys()}  # noqa: SIM118
        assert inner - {"text_projection.weight"} == {
            f"text_model.{x}" for x in ("embeddings", "encoder", "final_layer_norm")
        }
    assert {"vocab.json", "merges.txt"} <= {file.name for file in (folder / "tokenizer").iterdir()}
    assert touched(load(folder, device="cpu"), pipe) == []


def test_a_folder_alone_is_an_export():
    stages = [{"objective": {"name": "dmd2"}, "train": {"images": 1}}]
    common = {"out": "o", "teacher": {"path": "t"}, "data": {"source": "noise"}, "stages": stages}
    assert Config.model_validate({**common, "export": "e"}).exported == Path("e")
    chosen = Config.model_validate({**common, "export": {"dtype": "fp16"}})
    assert chosen.exported == Path("o/student")
    assert chosen.export.dtype == "fp16"
    assert Config.model_validate({**common, "export": None}).export.dtype == "auto"
