"""What a student is told at its stops, baked into its time embedding: the plain network then says the same."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.baking import baked
from fastgen.models.graphs import Graphs
from fastgen.models.merging import merged
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.recordable import Actor, Invocation
from fastgen.models.walk import sample, scalars_at

GRID = [1.0, 0.75, 0.5, 0.25]
NAMES = ("s", "w")
RANK = 6


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(tiny.class_conditional())


def learned(model: nn.Module) -> nn.Module:
    """With embeddings, and an adapter if there is one, away from their start."""
    torch.manual_seed(1)
    for parameter in [*model.embeddings.parameters(), *(p for p in model.own.parameters() if p.ndim < 4)]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def whole(pipeline) -> nn.Module:
    return learned(pipeline.denoiser(scalars=NAMES))


def adapted(pipeline, *, rank: int = RANK) -> nn.Module:
    shared = SharedNetwork(alias(pipeline.network), ["generator"], Adaptation(rank=rank, alpha=2 * rank))
    return learned(AdaptedDenoiser(pipeline.speaking(shared.net), shared, "generator", scalars=NAMES))


def plain(pipeline, model: nn.Module, told) -> nn.Module:
    """The stock network that a student's weights make."""
    cond = pipeline.condition(1, labels=torch.tensor([2]))
    state = baked(model, model.own.state_dict(), told, (torch.zeros(1, *pipeline.shape), cond))
    if isinstance(model, AdaptedDenoiser):
        return pipeline.speaking(merged(pipeline.network, state, alpha=2 * RANK))
    network = pipeline.denoiser()
    network.net.load_state_dict(state)
    return network


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [whole, adapted])
@pytest.mark.parametrize("sampler", ["ode", "renoise"])
def test_the_baked_network_samples_as_the_told_one(pipeline, make, sampler):
    model = make(pipeline)
    told = scalars_at(GRID, NAMES, sampler=sampler, guidance=7.0)
    cond = pipeline.condition(3, labels=torch.tensor([0, 1, 2]))
    noise = torch.randn(4, 3, *pipeline.shape)

    def drawn(network: nn.Module, **known: object) -> Tensor:
        parts = iter(noise)
        return sample(network, lambda: next(parts), cond, GRID, sampler=sampler, **known)

    close(drawn(plain(pipeline, model, told)), drawn(model, scalars=told))
    assert (drawn(model) - drawn(model, scalars=told)).abs().max() > 1e-2, "what is told makes no difference"


def test_layers_are_listened_to_in_calls_that_no_graph_replays(pipeline):
    seen = []

    class Spy(Graphs):
        def call(self, actor: Actor, told) -> object:
            seen.append(Invocation.of(actor, told).plain)
            return actor.function(told)

    for make in (whole, adapted):
        model = make(pipeline)
        (model._denoiser if make is adapted else model).graphs = Spy()
        plain(pipeline, model, scalars_at(GRID, NAMES, sampler="ode", guidance=None))
    assert seen == [False] * 2 * len(GRID)


def test_each_stop_is_told_where_its_step_leads():
    leading = scalars_at(GRID, NAMES, sampler="ode", guidance=5.0)
    assert [values["s"] for values in leading.values()] == [0.75, 0.5, 0.25, 0.0]
    assert {values["w"] for values in leading.values()} == {0.25}
    assert {values["s"] for values in scalars_at(GRID, ("s",), sampler="renoise", guidance=None).values()} == {0.0}


def test_an_adapter_of_too_low_a_rank_is_refused(pipeline):
    told = scalars_at(GRID, NAMES, sampler="ode", guidance=7.0)
    model = adapted(pipeline, rank=3)
    with pytest.raises(UserError, match=r"at least 4 \(it is 3\)"):
        baked(
            model,
            model.own.state_dict(),
            told,
            (torch.zeros(1, *pipeline.shape), pipeline.condition(1, labels=torch.tensor([0]))),
        )
