"""Settings that would break a stage's training off, or leave a role without any, are refused from the config alone."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from closed_forms import gaussian_roles, only
from families import FAMILIES
from torch import Tensor

from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_needs, check_stages
from fastgen.distillation.distil import distil
from fastgen.distillation.grids import check_grids
from fastgen.errors import UserError
from fastgen.models.calls import through
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.models.walk import Plan
from fastgen.objectives import Batch, Landing
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.parts.gan import GAN, discriminator_losses
from fastgen.objectives.parts.guidance_laws import Anti, LongShort, Shared
from fastgen.objectives.parts.matching import compare
from fastgen.objectives.parts.needs import Needs
from fastgen.objectives.trajectory.tcm import TruncatedConsistency
from fastgen.process import Flow, LogitNormal, LogNormal, Prediction, Reading, Trig, even_grid
from fastgen.process.prediction import flow_row
from fastgen.proofs.analytic import AffineGenerator

RUN = """\
out: out
teacher: {path: nowhere}
student: {steps: [4], sampler: ode}
data: {source: digits}
train: {images: 8, batch: 4}
stages:
  - {name: first, objective: {name: dmd2, gan: 0}}
  - {name: last, objective: {name: dmd2}}
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["stages.1.objective.gan={r1: 1}", "train.gradient_checkpointing=true"], "use gan.approximate_r1"),
        (["stages.1.objective.name=f_distill", "train.micro_batch=1"], "micro_batch is 1: make it larger"),
        (["stages.1.discriminator={heads: mean, backbone: real_score}"], "set discriminator.heads=trained"),
        (["stages.1.carry={foo: generator}"], "carries 'foo', but its roles are fake_score, generator, real_score"),
        (["stages.1.carry={fake_score: generator}", "sharing=scores"], "set sharing=full"),
        (["stages.1.objective.stabilisers={follow: 0.03}", "sharing=scores"], "of which no LoRA is a mean"),
        (
            ["stages.1.objective={name: lcm}", "student.guidance=3", "stages.1.carry={target: teacher}"],
            "carries the target, which always starts as its generator",
        ),
        (["stages.0.carry={fake_score: generator}"], "from 'generator', which the stage before does not leave"),
        (
            ["stages.1.carry={real_score: ema}", "stages.0.train.ema=null"],
            "from 'ema', which the stage before does not",
        ),
        (["stages.1.carry={generator: fake_score}", "sharing=scores"], "carries the generator from the fake score, of"),
        (["stages.0.carry={fake_score: fake_score}"], "from 'fake_score', which the stage before does not leave"),
        (["init=a", "stages.0.carry={generator: teacher, fake_score: ema}"], "init leaves a 'generator'"),
        (["stages.1={objective: {name: k_dmd}, carry: {coahc: first}}"], "carries 'coahc', but its roles are coach, "),
        (
            [
                "stages.0.objective={name: meanflow}",
                "process=flow",
                "stages.1={objective: {name: k_dmd}, carry: {generator: teacher, coach: generator}}",
            ],
            "and is not told it itself: choose objectives that are told the same",
        ),
        (
            ["sharing=scores", "stages.1={objective: {name: k_dmd}, carry: {coach: generator}}"],
            "a LoRA on the teacher: set sharing=full",
        ),
        (
            [
                "stages.0.objective={name: meanflow}",
                "process=flow",
                "stages.1.carry={generator: teacher, real_score: first}",
            ],
            "told where its steps lead, and it is baked into what a stage leaves under its name",
        ),
        (
            [
                "stages.0.objective={name: degradation}",
                "stages.1.objective.guidance=2",
                "stages.1.carry={real_score: first}",
            ],
            "trained without an unconditional mode: set a dropout",
        ),
        (
            ["stages.1.objective.gan={start: 5}"],
            "starts after 5 images, but train.images=8 with train.batch=4 ends",
        ),
        (["stages.1.objective={name: pcm, gan: {weight: 0.1, start: 5, kind: hinge}}"], "starts after 5 images, but"),
        (["stages.1.objective={name: tdd, gan: {weight: 0.1, start: 5, kind: hinge}}"], "starts after 5 images, but"),
        (["stages.1.objective={name: tscd, gan: {weight: 0.1, start: 5, kind: hinge}}"], "starts after 5 images, but"),
    ],
)
def test_a_stage_that_cannot_train_is_refused(options, words, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    check_stages(load(tmp_path / "run.yaml"))
    with pytest.raises(UserError, match=re.escape(words)):
        check_stages(load(tmp_path / "run.yaml", options))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("stages.1.carry={real_score: frist}", "from 'frist', which is no earlier stage: did you mean first?"),
        ("stages.0.carry={real_score: last}", "from 'last', which is no earlier stage"),
        ("stages.1={objective: {name: dmd2, gan: {feature_r1: 1}}, discriminator: {heads: mean}}", "nothing trains"),
        ("stages.1.discriminator={layers: []}", "this must not be empty"),
        ("stages.0.name=ema", "which `carry` means otherwise"),
    ],
)
def test_a_stage_that_is_not_there_is_refused(option, words, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    assert load(tmp_path / "run.yaml", ["stages.1.carry={real_score: first}"]).stages[1].carry
    with pytest.raises(UserError, match=re.escape(words)):
        load(tmp_path / "run.yaml", [option])


def test_a_copy_that_has_an_unconditional_mode_may_guide(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    first = "stages.0.objective={name: degradation, dropout: 0.1}"
    check_stages(
        load(
            tmp_path / "run.yaml",
            [first, "stages.1={objective: {name: dmd2, gan: 0, guidance: 2}, carry: {real_score: first}}"],
        )
    )


def test_an_adversary_that_is_asked_once_is_not_refused(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    check_stages(load(tmp_path / "run.yaml", ["stages.1.objective.gan={start: 4}"]))


def test_a_network_without_a_time_embedding_is_told_nothing_more(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    family = FAMILIES["chroma"]
    pipeline = Pipeline(family.build(), size=family.size)
    check_needs(load(tmp_path / "run.yaml"), pipeline)
    with pytest.raises(UserError, match=r"stage 'last' tells .* ChromaTransformer2DModel has no time embedding"):
        check_needs(load(tmp_path / "run.yaml", ["stages.1.objective.step_aware=true"]), pipeline)


@pytest.mark.parametrize(
    ("family", "others", "words"),
    [
        ("dit", {"3": "5"}, ""),
        ("dit", {"4": "10000"}, "has '10000' in objective.instead, but the teacher's classes are 0 to"),
        ("dit", {"owl": "fox"}, "has 'owl' in objective.instead"),
        ("stable_diffusion", {"fox": "dog"}, ""),
        ("stable_diffusion", {"fox": "dog", "owl": "dog"}, "is to forget 'owl' .*, which stands in no prompt"),
        ("stable_diffusion", {"fox": "a foxhound"}, "asks for 'a foxhound' in the place of 'fox'"),
        ("ddpm", {"3": "5"}, "is to forget what DDPMPipeline is never asked for"),
    ],
)
def test_what_is_to_be_forgotten_is_asked_for(family, others, words, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\ntwo\n", encoding="utf-8")
    data = f"{{source: prompts, path: {tmp_path}/prompts.txt}}" if family == "stable_diffusion" else "{source: noise}"
    (tmp_path / "run.yaml").write_text(RUN.partition("stages:")[0] + "objective: {name: sfd}")
    config = load(tmp_path / "run.yaml", [f"data={data}", f"objective.instead={json.dumps(others)}"])
    with pytest.raises(UserError, match=words) if words else nullcontext():
        check_needs(config, Pipeline(FAMILIES[family].build()))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GAN(-1.0),
        lambda: GAN(0.1, learned=0.0),
        lambda: GAN(r1=-1.0),
        lambda: GAN(approximate_r1=1.0, spread=0.0),
        lambda: Shared(5.0, 2.0),
        lambda: LongShort(dropout=3.0),
        lambda: Anti(dropout=-1.0),
        lambda: LogitNormal(shift=0.0),
        lambda: LogNormal(std=-1.0),
    ],
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"need|must|lies in"):
        wrong()


def test_guidance_of_a_retold_network_is_that_of_its_own_process():
    """Also where the pipeline gives the conditional output's norm back."""
    inner = NetworkDenoiser(
        torch.nn.Linear(1, 1), Reading(Flow(), flow_row, lambda t: t, lambda u: u), CallForm(rescaled=True)
    )
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x0, eps, other = torch.randn(3, 2, 5, dtype=torch.float64)
    spoken = RetargetedDenoiser(inner, Trig())
    seen = spoken.process.retarget(inner.process, t)
    halves = [(x0, eps), (other, eps + other)]
    outer = [Prediction(Trig(), t, *half) for half in halves]
    own = [Prediction(Flow(), seen.t, *half) for half in halves]
    found, wanted = spoken.guide(*outer, 4.0), inner.guide(*own, 4.0)
    assert isinstance(found.process, Trig)
    torch.testing.assert_close((found.x0, found.eps), (wanted.x0, wanted.eps))


def test_a_sample_at_a_later_time_is_compared_with_what_the_fake_score_is_taught():
    """E[(fake - truth) u(x_t)] = 0 is what SiD rests on; with the clean prediction in its place it is not."""
    roles = gaussian_roles(Flow())
    roles.plan = replace(roles.plan, grids=[even_grid(4)])
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    count = 40_000
    cond = Conditioning(count, {"class_labels": torch.full((count,), -1)})
    batch = Batch(cond, (2,), rng, torch.Generator().manual_seed(0))
    generator = roles["generator"]
    assert isinstance(generator, AffineGenerator)
    t, s = batch.full(1.0), batch.full(0.75)
    belief = generator(roles.process.prior(batch.noise().double(), t), t, cond)
    landing = Landing(belief.at(s), s, t, belief.x0)
    scores = compare(through, SiD(times=only(0.6)), roles, batch, landing)
    law = landing.x.detach()
    mean, spread = law.mean(0), torch.cov(law.T)
    scale = roles.process.transition(s, scores.t).scale[:1]
    noisy = scale**2 * spread + roles.process.transition(s, scores.t).std[0] ** 2 * torch.eye(2)
    sigma, alpha = roles.process.sigma(scores.t)[0], roles.process.alpha(scores.t)[0]
    score = -torch.linalg.solve(noisy, (scores.x_t - scale * mean).detach().T).T
    fake = (scores.x_t.detach() + sigma**2 * score) / alpha
    residual = ((fake - scores.truth.detach()) * score).mean(), ((fake - landing.x0.detach()) * score).mean()
    assert abs(residual[0]) < 0.03 < abs(residual[1])


class Attentive(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(2, 8)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        q = self.project(x_t.float()).view(len(x_t), 1, 2, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).flatten(1).sum(1, keepdim=True)


def test_the_gradient_penalty_differentiates_attention_twice():
    judge = Attentive()
    roles = gaussian_roles(Flow(), discriminator=judge)
    cond = Conditioning(8, {"class_labels": torch.full((8,), -1)})
    rngs = [torch.Generator().manual_seed(i) for i in range(2)]
    batch = Batch(cond, (2,), *rngs, real=torch.randn(8, 2))
    x0 = torch.randn(8, 2)
    landing = Landing(x0, None, batch.full(1.0), x0)
    with roles.training(("discriminator",)):
        discriminator_losses(GAN(r1=1.0), roles, batch, landing)["r1"].backward()
    assert judge.project.weight.grad.abs().sum() > 0


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(RUN)
    config = load(tmp_path / "run.yaml", ["train.micro_batch=2", "data={source: noise}", "stages.1.objective.gan=0"])
    three = SimpleNamespace(num_processes=3, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr("fastgen.distillation.distil.accelerator_of", lambda _: three)
    with pytest.raises(UserError, match=r"train\.batch is 4, which 3 processes .* make it a multiple of 6"):
        distil(config, recipes=tmp_path)
    three.num_processes = 2
    with pytest.raises(UserError, match="no pipeline folder"):
        distil(config, recipes=tmp_path)


def test_a_step_below_the_noise_that_is_trained_is_refused():
    last = SimpleNamespace(name="last", objective=TruncatedConsistency(truncation=0.5))
    config = SimpleNamespace(stages=[last])
    check_grids(config, Plan([even_grid(1), even_grid(2)]), Flow())
    with pytest.raises(UserError, match=r"'last' trains nothing below noise 0.5 .* starts at 0.333: lower the"):
        check_grids(config, Plan([even_grid(1), even_grid(4)]), Flow())


def test_a_first_step_that_float32_leads_beyond_the_noisiest_time_is_no_step_of_too_little_noise():
    beyond = torch.tensor([1.0000001], dtype=torch.float64)
    for truncation in (0.0, 0.5):
        last = SimpleNamespace(name="last", objective=SimpleNamespace(needs=Needs(noise=truncation)))
        check_grids(SimpleNamespace(stages=[last]), Plan([beyond, even_grid(2)]), Flow())
