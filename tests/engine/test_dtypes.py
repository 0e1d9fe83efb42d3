"""Every combination of teacher, precision, sharing and base trains, exports and verifies, or is refused beforehand."""

import json
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from families import FAMILIES, denoiser
from torch import nn

from fastgen.config.schema import Config
from fastgen.config.train import TrainConfig
from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_stages
from fastgen.distillation.distil import distil
from fastgen.engine import roles as build
from fastgen.engine.dtypes import autocast_of
from fastgen.engine.lineage import Lineage, Told
from fastgen.errors import UserError
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.process import Flow, Reading
from fastgen.process.prediction import flow_row

BASES = ("auto", "fp32", "bf16", "fp8", "int8", "nf4")


@dataclass(frozen=True)
class Case:
    """Settings of a run; `saved` is how the teacher's files are."""

    saved: str = "plain"
    dtype: str = "auto"
    precision: str = "fp32"
    sharing: str = "full"
    base: str = "auto"

    @property
    def refusal(self) -> str | None:
        """What the run is refused with: layers of a shared network that are not in float32 compute in bf16."""
        if self.sharing == "full" or self.base in ("auto", "fp32"):
            return None
        if self.precision != "bf16":
            return rf"lora\.base is {self.base}.*set train\.precision=bf16 or lora\.base=fp32"
        if self.sharing == "lora" and self.base in ("fp8", "int8", "nf4") and self.dtype in ("fp32", "fp16"):
            return rf"lora\.base={self.base} .*teacher\.dtype={self.dtype} .*: set teacher\.dtype to auto or bf16"
        return None

    def config(self, teachers: Path, out: Path, *options: str) -> Config:
        told = [f"out={out}", f"teacher.path={teachers / self.saved}", f"teacher.dtype={self.dtype}"]
        told += [f"train.precision={self.precision}", f"sharing={self.sharing}", f"lora.base={self.base}"]
        return load(teachers / "run.yaml", [*told, *options])

    def __str__(self) -> str:
        return "-".join(astuple(self))


COVERING = [
    Case(dtype="bf16"),
    Case(dtype="fp16", precision="fp16", sharing="lora"),
    Case(precision="bf16", sharing="lora", base="fp32"),
    Case("sharded", dtype="bf16", precision="bf16", sharing="scores"),
    Case("mixed", dtype="bf16", precision="fp16"),
    Case("variant", precision="bf16"),
]
SHARINGS = [("full", "auto"), *product(("lora", "scores"), BASES)]
GRID = [
    *(
        Case("plain", dtype, precision, *shared)
        for dtype, precision in product(("auto", "fp32", "bf16", "fp16"), ("fp32", "bf16", "fp16"))
        for shared in SHARINGS
    ),
    *(Case(*rest) for rest in product(("variant", "sharded", "mixed"), ("auto", "fp16"), ("bf16",), ("full", "lora"))),
]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Stable Diffusion in files of several kinds, and the config of one cycle of its distillation."""
    folder = tmp_path_factory.mktemp("teachers")
    mixed = tiny.stable_diffusion()
    mixed.text_encoder.half()
    mixed.vae.bfloat16()
    mixed.save_pretrained(folder / "mixed")
    tiny.stable_diffusion().save_pretrained(folder / "plain")
    tiny.stable_diffusion().save_pretrained(folder / "sharded", max_shard_size="20KB")
    tiny.stable_diffusion().to(torch.float16).save_pretrained(folder / "variant", variant="fp16")
    (folder / "prompts.txt").write_text("a red fox\nblue jay\n")
    config = {
        "device": "cpu",
        "cache": None,
        "student": {"steps": [1], "height": 8, "width": 8},
        "data": {"source": "prompts", "path": str(folder / "prompts.txt")},
        "lora": {"rank": 2},
        "objective": {"name": "dmd2", "gan": 0, "ratio": 1, "guidance": 2.0},
        "train": {"images": 2, "batch": 2, "optim": {"lr": 1e-2}},
        "log": {"trackers": [], "previews": 0, "every": 1},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder


def trains_and_verifies(case: Case, teachers: Path, out: Path, caplog: pytest.LogCaptureFixture, *told: str) -> None:
    settled = ["train.images=8"] * (case.precision == "fp16")  # until the loss scaler skips no more updates
    caplog.set_level("INFO", "fastgen")
    distil(case.config(teachers, out, *told, *settled), recipes=teachers)
    verified = caplog.text.count("verified")
    assert verified == (2 if case.sharing == "lora" else 1)


@pytest.mark.usefixtures("verified_here", "few_previews")
@pytest.mark.parametrize("case", COVERING, ids=str)
def test_it_trains_exports_and_verifies(case, teachers, tmp_path, caplog):
    trains_and_verifies(case, teachers, tmp_path / "run", caplog)


@pytest.mark.slow
@pytest.mark.usefixtures("verified_here", "few_previews")
@pytest.mark.parametrize("case", [case for case in GRID if not case.refusal and case not in COVERING], ids=str)
def test_every_other_combination_does(case, teachers, tmp_path, caplog):
    if case.base in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    trains_and_verifies(case, teachers, tmp_path / "run", caplog)


@pytest.mark.parametrize("case", [case for case in GRID if case.refusal], ids=str)
def test_what_cannot_compute_is_refused_from_the_config(case, teachers, tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.engine.dtypes.find_spec", lambda name: name)
    with pytest.raises(UserError, match=case.refusal):
        check_stages(case.config(teachers, tmp_path / "run"))


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_is_kept_where_stock_loading_keeps_it(name, tmp_path):
    """Of every parameter and buffer, in networks of roles of their own, shared ones and trained ones."""
    net = denoiser(FAMILIES[name].build())
    net.save_pretrained(tmp_path)
    stock = dtypes(type(net).from_pretrained(tmp_path, dtype=torch.bfloat16))
    pipeline = SimpleNamespace(
        network=net, speaking=lambda net, **_: NetworkDenoiser(net, FLOW, CallForm()), told_in=frozenset()
    )
    settings = TrainConfig(images=1, precision="bf16")
    lent, trained = (Lineage("teacher", kind, Told((), None), net) for kind in ("lent", "trained"))
    assert dtypes(build._with_network(pipeline, settings, lent, None).net) == stock
    assert dtypes(build._with_network(pipeline, settings, trained, None).net) == dtypes(net)
    split = settings.model_copy(update={"masters": "split"})
    halved = build._with_network(pipeline, split, trained, None).net
    assert {name: stock[name] for name, _ in halved.named_parameters()}.items() <= dtypes(halved).items()
    assert dtypes(build._base(net, "bf16", alone=True)) == stock


@pytest.mark.parametrize(
    ("own", "precision", "told", "expected"),
    [
        (torch.float32, "bf16", {torch.float32}, torch.bfloat16),
        (torch.bfloat16, "bf16", set(), None),
        (torch.bfloat16, "bf16", {torch.bfloat16, torch.float32}, None),
        (torch.bfloat16, "bf16", {torch.float32}, torch.bfloat16),  # cast from a pipeline in float32
        (torch.float16, "bf16", {torch.float16}, None),
        (torch.float16, "fp16", {torch.float16}, None),
        (torch.float32, "fp32", {torch.float32}, None),
    ],
)
def test_autocast_is_left_out_where_stock_pipelines_do_without(own, precision, told, expected):
    assert autocast_of(nn.Linear(1, 1).to(own), precision, told) == expected


def dtypes(net: nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in [*net.named_parameters(), *net.named_buffers()]}


FLOW = Reading(Flow(), flow_row, lambda t: 1000 * t, lambda u: u / 1000)
