"""Embeddings of further scalars: nothing at first, heard once they have learned, gone when nobody speaks."""

import pytest
import tiny
import torch
from embeddings import PLANE, VALUES, T, awake, check_embeddings, small_net
from families import FAMILIES
from replaying import Replaying
from rounding import assert_alike
from torch import Tensor, nn

from fastgen.config.lora import LoRAConfig
from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.engine.roles import build_roles
from fastgen.models.conditioning import Conditioning
from fastgen.models.graphs import Graphs
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.models.scalars import ScalarEmbeddings, find_time_embedding
from fastgen.models.walk import Plan
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import Trig, even_grid


@pytest.fixture(scope="module", params=["stable_diffusion", "flux", "sana"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    family = FAMILIES[request.param]
    return Pipeline(family.build(), size=family.size)


def asked(pipeline: Pipeline) -> tuple:
    x = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(0))
    return x, T, pipeline.condition(2, prompts=["a", "b"])


@torch.no_grad()
def said_by(denoiser: nn.Module, question: tuple, **told: Tensor) -> Tensor:
    return denoiser(*question, told).x0


def test_a_network_says_at_first_what_it_said_without(pipeline: Pipeline):
    question = asked(pipeline)
    plain, able = pipeline.denoiser(), pipeline.denoiser(scalars=("called", "landed"))
    said = said_by(plain, question)
    assert_alike(said_by(able, question), said)
    assert torch.equal(said_by(able, question, **VALUES), said_by(able, question))
    assert able.scalars == ("called", "landed")
    assert plain.scalars == ()
    assert not list(plain.embeddings.parameters())


def test_what_was_learned_is_heard_row_by_row_and_only_when_told(pipeline: Pipeline):
    question = asked(pipeline)
    able = pipeline.denoiser(scalars=("called", "landed"))
    said = said_by(able, question)
    awake(able)
    both = said_by(able, question, **VALUES)
    assert (both - said).abs().flatten(1).amax(dim=1).min() > 1e-4
    assert torch.equal(said_by(able, question), said), "a call that tells nothing hears nothing"
    one = said_by(able, question, called=VALUES["called"])
    assert not torch.equal(one, both)
    second = said_by(able, question, called=torch.tensor([1.0, 0.9]).double())
    torch.testing.assert_close(second[0], one[0])
    assert (second[1] - one[1]).abs().max() > 1e-5


def test_gradients_reach_the_embeddings_and_nothing_else_of_a_frozen_network(pipeline: Pipeline):
    able = pipeline.denoiser(scalars=("called",))
    able(*asked(pipeline), {"called": VALUES["called"]}).x0.square().sum().backward()
    last = able.embeddings.embed["called"][-1]
    assert last.weight.grad.any()
    assert last.bias.grad.any()
    assert all(parameter.grad is None for parameter in able.net.parameters())
    assert {name for name, _ in able.named_parameters()} > {"embeddings.embed.called.2.weight"}


@pytest.mark.parametrize("told", [{"landed": T}, {"called": T, "landed": T}])
def test_what_was_not_declared_is_refused(told: dict[str, Tensor]):
    for declared in ((), ("called",)):
        net = small_net(*declared)
        with pytest.raises(ValueError, match="declare it when the role is built"):
            net(torch.zeros(2, 2), T, PLANE.uncond(2), told)


def test_the_hook_is_gone_even_if_the_network_fails():
    denoiser = awake(small_net("called"))
    layer = denoiser.net.time_embedding
    calls: list[int] = []
    denoiser.net.enter.register_forward_pre_hook(lambda *_: calls.append(len(layer._forward_hooks)))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        denoiser(torch.zeros(2, 5), T, PLANE.uncond(2), {"called": T})
    assert calls == [1]
    assert not layer._forward_hooks


def test_what_is_added_is_zero_at_first_and_the_sum_of_the_embeddings_later():
    check_embeddings()


def test_a_network_without_a_time_embedding_is_refused():
    with pytest.raises(ValueError, match="Linear has no time embedding"):
        ScalarEmbeddings(nn.Linear(2, 2), ["called"])
    assert ScalarEmbeddings(nn.Linear(2, 2), []).names == ()


def test_a_network_of_another_process_is_told_too():
    net, x = awake(small_net("called")), torch.ones(2, 2)
    other = RetargetedDenoiser(net, Trig())
    assert other.scalars == ("called",)
    assert not torch.equal(other(x, T, PLANE.uncond(2), {"called": T}).x0, other(x, T, PLANE.uncond(2)).x0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("flux", "time_text_embed.timestep_embedder"),
        ("flux2", "time_guidance_embed.timestep_embedder"),
        ("hunyuan_video", "time_text_embed.timestep_embedder"),
        ("krea2", "time_embed"),
    ],
)
def test_the_time_embedding_is_neither_that_of_a_guidance_scale_nor_of_a_part(name: str, layer: str):
    assert find_time_embedding(FAMILIES[name].build().transformer) == layer


# In the roles of a run


AWARE = DMD2(ratio=1, guidance=Fixed(1.5), gan=GAN(0.0), step_aware=True)


def roles_with(lora: LoRAConfig | None, *, compiled: bool = False) -> tuple:
    pipeline = Pipeline(tiny.class_conditional())
    train = TrainConfig.model_validate({"images": 8, "batch": 4, "compile": compiled})
    stage = StageConfig(name="small", objective=AWARE, train=train)
    sharing = "lora" if lora else "full"
    roles = build_roles(pipeline, stage, plan=Plan([even_grid(2)]), weights=None, seed=0, sharing=sharing, lora=lora)
    x = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(0))
    return roles, (x, T, pipeline.condition(2, labels=torch.tensor([1, 2])))


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["copies", "adapters"])
def test_only_the_role_that_declares_a_scalar_is_told(lora: LoRAConfig | None):
    roles, question = roles_with(lora)
    assert roles.fake_score.scalars == ("called",)
    assert roles.generator.scalars == roles.real_score.scalars == ()
    said, others = said_by(roles.fake_score, question), said_by(roles.generator, question)
    told = {"called": VALUES["called"]}
    assert torch.equal(said_by(roles.fake_score, question, **told), said)
    awake(roles.fake_score)
    assert (said_by(roles.fake_score, question, **told) - said).abs().max() > 1e-4
    assert torch.equal(said_by(roles.fake_score, question), said)
    assert torch.equal(said_by(roles.generator, question), others)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["copies", "adapters"])
def test_a_role_trains_and_saves_its_embeddings_but_does_not_export_them(lora: LoRAConfig | None):
    roles, question = roles_with(lora)
    owned = {id(parameter) for parameter in roles.parameters("fake_score")}
    assert {id(parameter) for parameter in roles.fake_score.embeddings.parameters()} <= owned
    with roles.training(("fake_score",)):
        roles.fake_score(*question, {"called": VALUES["called"]}).x0.square().sum().backward()
    assert roles.fake_score.embeddings.embed["called"][-1].weight.grad.any()
    assert any(key.startswith("embeddings.") for key in roles["fake_score"].state_dict())
    assert not any("embeddings" in key for key in roles.fake_score.own.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["copies", "adapters"])
def test_a_compiled_network_hears_what_it_is_told(lora: LoRAConfig | None):
    roles, question = roles_with(lora, compiled=True)
    awake(roles.fake_score)
    with torch.compiler.set_stance("default", force_backend="eager"):
        said = said_by(roles.fake_score, question)
        assert (said_by(roles.fake_score, question, called=VALUES["called"]) - said).abs().max() > 1e-4
        torch.testing.assert_close(said_by(roles.fake_score, question), said)


def learns(denoiser: nn.Module, told: float, device: str) -> tuple[Tensor, ...]:
    """What is said of a sample that is told this, and the gradients of all weights."""
    x, value = torch.ones(2, 2, device=device), torch.full((2,), told, dtype=torch.float64, device=device)
    cond = Conditioning(2, {"class_labels": torch.zeros(2, dtype=torch.long, device=device)})
    denoiser.zero_grad()
    said = denoiser(x, T.to(device), cond, {"called": value}).x0
    said.square().sum().backward()
    return said.detach(), *(parameter.grad.clone() for parameter in denoiser.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_replayed_call_hears_what_it_is_told_itself(device: str):
    denoiser = awake(small_net("called")).to(device)
    expected = [learns(denoiser, told, device) for told in (0.1, 0.3, 0.5, 0.7)]
    denoiser.graphs = Replaying() if device == "cpu" else Graphs()
    for told, wanted in zip((0.1, 0.3, 0.5, 0.7), expected, strict=True):
        torch.testing.assert_close(learns(denoiser, told, device), wanted)
    assert len(denoiser.graphs.functions if device == "cpu" else denoiser.graphs._recorded) == 1
    assert not torch.allclose(expected[0][0], expected[1][0])
