"""Masters and working copies of roles on one network: never stale, never another role's, gradients added in fp32."""

import copy

import pytest
import small_run
import tiny
import torch
from torch import Tensor, nn

from fastgen.config.lora import LoRAConfig
from fastgen.models import bank
from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.adapters import Adaptation, SharedNetwork
from fastgen.models.bank import Bank, Seat
from fastgen.models.experts import Experts
from fastgen.models.owned import owned
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.roles import put, taken
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed

TRAINED = ("generator", "fake_score")
X, T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8]).double()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def stage_of(pipeline: Pipeline, **train: object):
    """A stage in bf16 on adapters that are multiplied by 3 / 2, with norms of their own."""
    objective = DMD2(ratio=1, guidance=Fixed(1.5))
    lora = LoRAConfig(rank=2, alpha=3, norms=True)
    return small_run.stage(pipeline, objective, lora=lora, precision="bf16", **train)


def stale(denoiser: AdaptedDenoiser) -> list[str]:
    """The names of the layers' parameters that are not the rounded masters while the role acts."""
    network = denoiser._network
    masters, factors = denoiser.adapter.state_dict(), {"lora_B": network.scale}
    with network.acting(denoiser.role):
        held = {name: parameter.detach() for name, parameter in network.net.named_parameters()}
    found = {name: name.removesuffix(".weight") if "lora_" in name else name for name in masters}
    wanted = {name: master * factors.get(name.split(".")[-2], 1.0) for name, master in masters.items()}
    return [name for name in masters if not torch.equal(held[found[name]], wanted[name].to(held[found[name]].dtype))]


def writes(stage) -> list[str]:
    """Everything that writes to masters, one after the other; what was stale after each."""
    generator, found = stage.roles.generator, []
    found += stale(generator)
    for _ in range(2):
        stage.cycle()
        found += [name for role in TRAINED for name in stale(stage.roles[role])]
    with stage.ema.applied():
        found += stale(generator)
    found += stale(generator)
    snapshot, kept = copy.deepcopy(stage.snapshot()), taken(generator)
    stage.cycle()
    stage.restore(snapshot)
    found += [name for role in TRAINED for name in stale(stage.roles[role])]
    put(generator, {name: 2 * value for name, value in kept.items()})
    return found + stale(generator)


def test_layers_compute_with_the_rounded_masters_after_every_write(pipeline, monkeypatch):
    stage = stage_of(pipeline)
    masters = stage.roles.generator.adapter.state_dict()
    assert {p.dtype for p in stage.roles.generator._network.banks["generator"].working.values()} == {torch.bfloat16}
    assert sum("lora_" not in name for name in masters) > 5
    assert not writes(stage)
    refresh = bank.Flat.refresh
    monkeypatch.setattr(bank.Flat, "refresh", lambda self: refresh(self) if self._copied is None else None)
    assert len(writes(stage_of(pipeline))) > len(masters)


def answer(denoiser: nn.Module, pipeline: Pipeline) -> Tensor:
    with torch.no_grad():
        return denoiser(X, T, pipeline.condition(2, labels=torch.tensor([1, 2]))).x0


class Forgetful(SharedNetwork):
    """Leaves the network to whoever acted last."""

    def _switch(self, role, switches):
        if role is not None:
            super()._switch(role, switches)


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_huge_update_of_one_role_moves_no_other(pipeline, monkeypatch, forgetful):
    if forgetful:
        monkeypatch.setattr("fastgen.engine.roles.SharedNetwork", Forgetful)
    roles = stage_of(pipeline).roles
    before = {role: answer(roles[role], pipeline) for role in ("real_score", "generator")}
    with torch.no_grad():
        for name, piece in roles.fake_score.adapter.named_parameters():
            if "lora_B" in name:
                piece.fill_(30)
    assert (answer(roles.fake_score, pipeline) - before["real_score"]).abs().max() > 0.5
    same = [torch.equal(answer(roles[role], pipeline), value) for role, value in before.items()]
    assert same == [not forgetful, True]


def test_gradients_add_up_in_fp32_and_under_the_scale():
    layer = nn.Linear(2, 2)
    layer.register_parameter("a", None)
    layer.register_parameter("b", None)
    seats = [Seat(slot, layer, slot, (2,), torch.bfloat16, factor) for slot, factor in (("a", 1.0), ("b", 0.3))]
    one = Bank([seats], torch.device("cpu"))
    parts = owned(small := nn.ParameterDict(one.pieces))
    assert [len(parts.tensors), *parts.places] == [1, "a", "b"]
    for gradient in (1.0, 2.0**-10):  # their sum is no bf16
        one.working["a"].grad = torch.full((2,), gradient, dtype=torch.bfloat16)
        one.working["b"].grad = torch.full((2,), gradient, dtype=torch.bfloat16)
        one.collect()
    found = parts.named([parts.tensors[0].grad])
    torch.testing.assert_close(found["a"], torch.full((2,), 1 + 2.0**-10), rtol=0, atol=0)
    torch.testing.assert_close(found["b"], 0.3 * torch.full((2,), 1 + 2.0**-10), rtol=1e-7, atol=0)
    assert all(parameter.grad is None for parameter in one.working.values())
    small["a"].data.add_(1)  # what is written past PyTorch's count of writes is not noticed, and nobody does so
    small["b"].detach().add_(1)
    one.refresh()
    assert one.working["a"].eq(1).all()


def test_an_expert_that_is_not_called_has_no_gradient_and_stands_still():
    def network() -> nn.Module:
        return nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(3, 3, bias=False)])})

    net = Experts(network(), network(), boundary=0.5)
    shared = SharedNetwork(net, ["generator"], Adaptation(rank=1, targets=["0"]))
    parts = owned(shared.adapters["generator"])
    assert [name.partition(".")[0] for name in parts.places] == ["high", "high", "low", "low"]
    shared.banks["generator"].requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.tensors, lr=0.1)
    for called in (net.high, net.low):
        before = [tensor.clone() for tensor in parts.tensors]
        optimizer.zero_grad()
        with shared.acting("generator"):
            called["blocks"][0](torch.ones(1, 3)).sum().backward()
        shared.banks["generator"].collect()
        optimizer.step()
        moved = [not torch.equal(*pair) for pair in zip(before, parts.tensors, strict=True)]
        assert moved == [called is net.high, called is net.low]


def test_the_state_of_an_optimizer_is_that_of_the_parameters(pipeline):
    """As checkpoints were written when every parameter was a tensor of its own, and still are read."""
    stage = stage_of(pipeline)
    for _ in range(2):
        stage.cycle()
    snapshot = copy.deepcopy(stage.snapshot())
    parameters = list(stage.roles.generator.parameters())
    tensors, groups = snapshot.tensors["optimizer.generator"], snapshot.state["optimizers"]["generator"]["groups"]
    assert [record["shape"] for record in groups[0]["parameters"]] == [list(p.shape) for p in parameters]
    for state in ("exp_avg", "exp_avg_sq"):
        assert [tensors[f"{i}.{state}"].shape for i in range(len(parameters))] == [p.shape for p in parameters]
    assert {float(tensors[f"{i}.step"]) for i in range(len(parameters))} == {2.0}
    for key in [key for key in tensors if key.startswith("1.")]:
        del tensors[key]  # a parameter that never had a gradient
    other = stage_of(pipeline)
    other.restore(snapshot)
    again = other.snapshot().tensors["optimizer.generator"]
    assert all(torch.equal(again[key], value) for key, value in tensors.items())
    assert not again["1.exp_avg"].any()
