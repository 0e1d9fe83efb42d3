"""Pipelines of two denoisers: who is called when, what a phase trains, and what is exported."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import scripted, streams
from exporting import family_student
from families import FAMILIES
from recorder import STOPS, recorded_roles
from rounding import assert_alike
from safetensors.torch import save_file
from torch import Tensor, nn

from fastgen.config import yaml_file as configfile
from fastgen.config.lora import LoRAConfig
from fastgen.config.schema import Config, StageConfig
from fastgen.config.train import TrainConfig
from fastgen.distillation.checks import check_needs
from fastgen.distillation.distil import distil
from fastgen.distillation.grids import check_grids
from fastgen.distillation.plan import plan
from fastgen.engine.roles import build_roles
from fastgen.errors import UserError
from fastgen.export.export import export
from fastgen.export.rebuild import verify_lora
from fastgen.export.verify import Export, verify
from fastgen.models.contract import Denoiser
from fastgen.models.experts import Experts
from fastgen.models.owned import owned
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.teacher import load_teacher
from fastgen.models.pipelines.watch import record
from fastgen.models.roles import Roles
from fastgen.models.targets import find_targets
from fastgen.models.walk import Plan
from fastgen.objectives import Batch
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.parts.rollout import land, phased
from fastgen.process import Flow

FAMILY = FAMILIES["wan_of_two"]
PROMPTS = ["a fox", "two", "a red bird", "blue", "green"]
TIMES = torch.tensor([0.2, 0.95, 0.875, 0.8749, 0.9], dtype=torch.float64)
ALL, HIGH, LOW = [0, 1, 2, 3, 4], [1, 2, 4], [0, 3]  # the rows of TIMES on either side of 0.875


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(FAMILY.build(), size=FAMILY.size)


@torch.no_grad()
def said_by(denoiser: Denoiser, pipeline: Pipeline, rows: list[int], **told: Tensor) -> Tensor:
    """What it believes of these of five samples at TIMES."""
    x = torch.randn(5, *pipeline.shape, generator=torch.Generator().manual_seed(0))
    cond = pipeline.condition(len(rows), prompts=[PROMPTS[row] for row in rows])
    return denoiser(x[rows], TIMES[rows], cond, {name: values[rows] for name, values in told.items()}).x0


def test_a_stock_loop_that_stops_at_the_boundary_is_said_again():
    pipe = FAMILY.build()
    pipe.register_to_config(boundary_ratio=0.75)
    probed = Pipeline(pipe, size=FAMILY.size)
    seen = record(pipe, {"prompt": PROMPTS[:2], **FAMILY.size, "guidance_scale": 1.0}, steps=4, rows=2)
    assert [step.timestep for step in seen] == [999, 900, 750, 500]
    cond = probed.condition(2, prompts=PROMPTS[:2])
    for step in seen:
        t = probed.reading.time(torch.full((2,), step.timestep, dtype=torch.float64))
        said = probed.denoiser()(step.sample, t, cond).output(probed.reading.row)
        torch.testing.assert_close(said, step.calls[0].output, rtol=1e-5, atol=1e-5)


def test_mixed_rows_are_what_each_network_says_of_its_own(pipeline):
    said = said_by(pipeline.denoiser(), pipeline, ALL)
    for rows, network in ((HIGH, pipeline.pipe.transformer), (LOW, pipeline.pipe.transformer_2)):
        assert_alike(said[rows], said_by(pipeline.speaking(network), pipeline, rows))


def test_a_batch_of_one_phase_is_one_call_of_one_network():
    calls: list[tuple[str, int]] = []
    net = Experts(Counted("high", calls), Counted("low", calls), boundary=875.0)
    for times in ([900.0, 875.0], [100.0, 874.0], [100.0, 900.0, 200.0]):
        net(hidden_states=torch.zeros(len(times), 1), timestep=torch.tensor(times))
    assert calls == [("high", 2), ("low", 2), ("high", 1), ("low", 2)]


class Counted(nn.Module):
    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.calls.append((self.name, len(timestep)))
        return (hidden_states,)


def test_a_told_value_is_told_of_its_own_row(pipeline):
    denoiser, values = pipeline.denoiser(scalars=["landed"]), torch.linspace(0, 0.8, 5, dtype=torch.float64)
    silent = said_by(denoiser, pipeline, ALL)
    nn.init.normal_(denoiser.embeddings.embed["landed"][-1].weight)
    said = said_by(denoiser, pipeline, ALL, landed=values)
    assert (said - silent).flatten(1).abs().amax(1).min() > 1e-3
    for row in ALL:
        alone = said_by(denoiser, pipeline, [row], landed=values)
        torch.testing.assert_close(said[[row]], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_a_phase_trains_its_own_expert_alone(pipeline, sharing):
    objective, reached = PhasedDMD(experts=True), set()
    stage = StageConfig(name="small", objective=objective, train=TrainConfig(images=8, batch=2))
    shared: dict[str, Any] = {"sharing": sharing, "lora": LoRAConfig(rank=2)}
    plan = Plan([pipeline.grid(4)], "ode", boundary=pipeline.boundary)
    trio = build_roles(pipeline, stage, plan=plan, weights={}, seed=0, **shared)
    for seed in range(6):
        cond = pipeline.condition(2, prompts=PROMPTS[:2])
        batch = Batch(cond, pipeline.shape, **streams(seed))
        with trio.training(("generator",)):
            sum(objective.generator(trio, batch).values()).backward()
            trio.collect_gradients(("generator",))
        places = owned(trio["generator"]).places.items()
        tensors = trio.parameters("generator")
        got = {name.split(".")[1] for name, place in places if tensors[place.tensor].grad is not None}
        for tensor in tensors:
            tensor.grad = None
        (called,), (landed,) = batch.landing.t.unique().tolist(), batch.landing.landed.unique().tolist()
        assert (got, landed) == (({"high"}, 0.75) if called >= 0.875 else ({"low"}, 0.0))
        reached |= got
    assert reached == {"high", "low"}


@pytest.mark.parametrize(
    ("boundary", "ends"), [(0.8, [0.7, 0, 0, 0]), (0.7, [0.4, 0.4, 0, 0]), (0.3, [0.2, 0.2, 0.2, 0])]
)
def test_the_experts_phases_meet_at_the_boundary(boundary: float, ends: list[float]):
    seen = {}
    for seed in range(24):
        generator = recorded_roles(Flow(), [STOPS])[1]
        alone = Roles({"generator": generator}, Plan([STOPS], "ode", boundary=boundary))
        landing = land(partial(phased, experts=True), alone, scripted(torch.randn(2, 2), seed=seed))
        seen[landing.t[0].item()] = landing.landed[0].item()
    assert seen == dict(zip(STOPS.tolist(), ends, strict=True))


RUN = """\
out: {folder}/out
device: cpu
cache: null
teacher: {{path: {folder}/teacher}}
student: {{steps: [4], sampler: ode, height: 16, width: 16, frames: 5}}
sharing: full
lora: {{rank: 2, alpha: 3}}
data: {{source: prompts, path: {folder}/prompts.txt}}
objective: {{name: phased_dmd, experts: true, ratio: 1}}
train: {{images: 8, batch: 2, ema: 0.5, gradient_checkpointing: true, optim: {{lr: 1e-3}}}}
log: {{previews: 0, every: 1, trackers: []}}
"""


def config(folder: Path, *options: str) -> Config:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return configfile.load(folder / "run.yaml", options)


def run(folder: Path, *options: str) -> Path:
    """The student's folder."""
    FAMILY.build().save_pretrained(folder / "teacher")
    return distil(config(folder, *options), recipes=folder)


def changed(one: nn.Module, other: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=pytest.mark.slow)])  # that starts in seconds
def test_experts_become_a_stock_pipeline_of_two_that_samples_as_trained(isolated, tmp_path, caplog, request):
    if not isolated:
        request.getfixturevalue("verified_here")
    caplog.set_level("INFO", "fastgen")
    student = run(tmp_path)
    assert caplog.text.count("verified") == 1
    teacher, pipe = FAMILY.build(), load(student, device="cpu")
    assert pipe.config.boundary_ratio == 0.875
    assert changed(pipe.transformer, teacher.transformer)
    assert changed(pipe.transformer_2, teacher.transformer_2)


@pytest.mark.usefixtures("verified_here")
def test_loras_of_two_are_files_of_two_that_wan_loads(tmp_path, caplog):
    caplog.set_level("INFO", "fastgen")
    run(tmp_path, "sharing=lora", "train.precision=bf16")
    assert caplog.text.count("verified") == 2
    folder = tmp_path / "out" / "student-lora"
    assert len(verify_lora(folder, str(tmp_path / "teacher"))) == 1
    code = re.search("```python\n(.*?)pipe.scheduler", (folder / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("path/to/teacher", str(tmp_path / "teacher")).replace("path/to/this/folder", str(folder))
    exec(code, said := {})
    for name, adapter in (("transformer", "fewstep"), ("transformer_2", "fewstep_2")):
        network = said["pipe"].components[name]
        assert network.active_adapters() == ["fewstep", "fewstep_2"]
        assert [key for key, p in network.named_parameters() if key.endswith(f"lora_B.{adapter}.weight") and p.any()]


@pytest.mark.usefixtures("verified_here")
def test_an_export_of_the_two_the_wrong_way_round_is_noticed(tmp_path):
    student = family_student("wan_of_two", (4,), "ode")
    pipe = student.pipe
    pipe.register_modules(transformer=pipe.transformer_2, transformer_2=pipe.transformer)
    export(pipe, student.notes, tmp_path / "student", student.schedules)
    with pytest.raises(UserError, match="differs from the sampler of training"):
        verify(Export(str(tmp_path / "student")), student.schedules[0], student.ours)


def test_a_plan_counts_both(tmp_path):
    FAMILY.build().save_pretrained(tmp_path / "teacher")
    text = plan(config(tmp_path), recipes=tmp_path)
    both = sum(p.numel() for p in FAMILY.build().transformer.parameters()) * 2
    assert f"denoiser {both / 1e6:.2f} M parameters" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["objective={name: dmd2}"], "has a discriminator, .* two denoisers: set objective.gan=0"),
        (["objective={name: shortcut}"], "does not fit the WanPipeline: .* cannot be baked into two networks"),
    ],
)
def test_what_does_not_fit_two_is_refused_by_name(pipeline, options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        check_needs(config(tmp_path, *options), pipeline)


def test_experts_of_a_teacher_of_one_are_refused_by_name(tmp_path):
    one = FAMILIES["wan"]
    with pytest.raises(UserError, match=r"the WanPipeline has one denoiser, .* set objective.experts=false"):
        check_needs(config(tmp_path), Pipeline(one.build(), size=one.size))
    with pytest.raises(UserError, match="set phases=2"):
        config(tmp_path, "objective.phases=3")


@pytest.mark.parametrize(("times", "where"), [([1.0, 0.875], "below"), ([0.8, 0.5], "at or above")])
def test_a_student_that_leaves_an_expert_untrained_is_refused(pipeline, times, where, tmp_path):
    with pytest.raises(UserError, match=f"of 2 steps, at the times {times[0]:.3g}, .* none lies {where} the boundary"):
        check_grids(
            config(tmp_path),
            Plan([torch.tensor(times, dtype=torch.float64)], boundary=pipeline.boundary),
            pipeline.reading.process,
        )


def test_adapters_of_one_network_alone_are_refused(pipeline):
    assert find_targets(pipeline.network, ["high.blocks.0.attn1.to_q", "low.blocks.1.attn1.to_q"])
    with pytest.raises(UserError, match="fit no layer of the low-noise network"):
        find_targets(pipeline.network, ["high.blocks.0.attn1.to_q"])


def test_a_lora_that_does_not_say_for_which_it_is_is_refused(tmp_path):
    FAMILY.build().save_pretrained(tmp_path / "teacher")
    save_file({"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(1, 24)}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match=r"two denoisers, and teacher.loras does not say"):
        load_teacher(
            config(tmp_path, f"teacher.loras=[{{path: {tmp_path}/style.safetensors}}]").teacher.source, device="cpu"
        )
