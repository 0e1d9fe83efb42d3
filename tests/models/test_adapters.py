"""Adapters on a shared network: where they sit, what they own, and what a stage, a checkpoint and an export see."""

import copy

import diffusers
import pytest
import small_run
import tiny
import torch
from accelerate import Accelerator
from peft import inject_adapter_in_model, set_peft_model_state_dict
from rounding import assert_alike
from torch import Tensor, nn

from fastgen.config.lora import LoRAConfig
from fastgen.config.schema import StageConfig
from fastgen.config.train import TrainConfig
from fastgen.data import Loader
from fastgen.engine import stage as loop
from fastgen.engine.feed import Feed
from fastgen.engine.roles import build_roles
from fastgen.errors import UserError
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.merging import lora_layers, merged
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.targets import find_targets
from fastgen.models.walk import Plan
from fastgen.objectives import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import even_grid

TRAINED = ("generator", "fake_score")
ONE_TURN = DMD2(ratio=1, guidance=Fixed(1.5))
SMALL = LoRAConfig(rank=4, alpha=8)
X, T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8]).double()


@pytest.fixture
def pipeline():
    return Pipeline(tiny.class_conditional())


def roles_on(pipeline, lora=SMALL, *, sharing="lora", weights=None, objective=ONE_TURN, carry=None, **train):
    settings = TrainConfig.model_validate({"images": 1000, "batch": 4, "optim": {"lr": 1e-2}, **train})
    config = StageConfig(name="small", objective=objective, train=settings, carry=carry or {})
    plan, left = Plan([even_grid(1)]), weights or {}
    base = "bf16" if settings.precision == "bf16" else "fp32"
    roles = build_roles(pipeline, config, plan=plan, weights=left, seed=0, sharing=sharing, lora=lora, base=base)
    return roles, config


def stage_on(pipeline, lora=SMALL, **changes):
    roles, config = roles_on(pipeline, lora, **changes)
    feed = Feed(pipeline, Loader(small_run.Stripes(), seed=0), small_run.CPU, config.objective.needs, None)
    return loop.Stage(config, roles, feed, Accelerator(cpu=True))


def answer(model, pipeline) -> Tensor:
    with torch.no_grad():
        return model(X, T, pipeline.condition(2, labels=torch.tensor([1, 2]))).x0


def moved(roles, by=0.1):
    """Every adapter away from its start."""
    for role in TRAINED:
        with torch.no_grad():
            for p in roles[role].parameters():
                p += by * torch.randn_like(p)


def tensors_of(*modules) -> dict[int, Tensor]:
    return {t.data_ptr(): t for m in modules for t in (*m.parameters(), *m.buffers())}


def size(tensors) -> int:
    return sum(t.numel() for t in tensors)


@pytest.mark.parametrize("norms", [False, True])
def test_every_role_starts_as_the_teacher(pipeline, norms):
    untouched = answer(pipeline.denoiser(), pipeline)
    roles, _ = roles_on(pipeline, LoRAConfig(rank=64, norms=norms))
    shared = answer(roles.real_score, pipeline)
    assert_alike(shared, untouched)
    for role in TRAINED:
        assert torch.equal(answer(roles[role], pipeline), shared)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_leaves_the_teacher_bit_for_bit(pipeline, norms, checkpointing):
    state = copy.deepcopy(pipeline.network.state_dict())
    stage = stage_on(pipeline, LoRAConfig(rank=4, norms=norms), gradient_checkpointing=checkpointing)
    untouched = answer(stage.roles.real_score, pipeline)
    for _ in range(3):
        stage.cycle()
    assert torch.equal(answer(stage.roles.real_score, pipeline), untouched)
    assert_alike(answer(pipeline.denoiser(), pipeline), untouched)
    assert pipeline.network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in pipeline.network.state_dict().items())
    generated = [answer(stage.roles[role], pipeline) for role in TRAINED]
    assert not torch.equal(generated[0], untouched)
    assert not torch.equal(*generated)


def test_memory_holds_one_network_and_the_adapters(pipeline):
    before = tensors_of(pipeline.network)
    roles, _ = roles_on(pipeline)
    own = [p for role in TRAINED for p in roles.parameters(role)]
    after = tensors_of(pipeline.network, *(roles[role].net for role in (*TRAINED, "real_score")))
    assert {id(roles[role].net) for role in (*TRAINED, "real_score")} == {id(roles.generator.net)}
    assert before.keys() == after.keys()
    with roles.generator._network.acting("generator"):
        acting = tensors_of(roles.generator.net)
    assert size(acting.values()) == size(before.values()) + size(roles.parameters("generator"))
    targets = [pipeline.network.get_submodule(name).weight for name in find_targets(pipeline.network)]
    expected = 2 * sum(4 * (w.shape[0] + w[0].numel()) for w in targets)
    assert size(own) == expected


def test_scores_share_a_network_beside_a_generator_of_its_own(pipeline):
    roles, _ = roles_on(pipeline, sharing="scores")
    assert roles.real_score.net is roles.fake_score.net
    assert roles.generator.net is not roles.fake_score.net
    assert all("lora_" in key for key in roles.fake_score.state_dict())
    assert set(roles.generator.own.state_dict()) == set(pipeline.network.state_dict())
    for role in ("generator", "fake_score"):
        before = answer(roles[role], pipeline)
        moved(roles)
        assert not torch.equal(answer(roles[role], pipeline), before)
    assert_alike(answer(roles.real_score, pipeline), answer(pipeline.denoiser(), pipeline))


def test_a_role_owns_its_adapter_and_nothing_else(pipeline):
    roles, _ = roles_on(pipeline)
    keys = [set(roles[role].state_dict()) for role in (*TRAINED, "real_score")]
    assert keys[0] == keys[1]
    assert keys[2] == set() == set(roles.parameters("real_score"))
    assert all("lora_" in key for key in keys[0])
    ids = [{id(p) for p in roles.parameters(role)} for role in TRAINED]
    assert ids[0].isdisjoint(ids[1])
    network = roles.generator._network
    with roles.training(("generator",)):
        trained = {}
        for role in (*TRAINED, None):
            with network.acting(role):
                trained[role] = [name for name, p in roles.generator.net.named_parameters() if p.requires_grad]
    assert [f"{name}.weight" for name in trained["generator"]] == list(roles.generator.adapter.state_dict())
    assert not trained["fake_score"] + trained[None]


def test_a_role_starts_from_what_it_carries(pipeline):
    first, _ = roles_on(pipeline)
    moved(first)
    left = {
        "generator": first.generator.own.state_dict(),
        "ema": {key: 2 * value for key, value in first.generator.own.state_dict().items()},
    }
    expected = answer(first.generator, pipeline)
    roles, _ = roles_on(pipeline, weights=left, carry={"fake_score": "generator", "real_score": "generator"})
    assert_alike(answer(roles.fake_score, pipeline), expected)
    assert_alike(answer(roles.real_score, pipeline), expected)
    assert torch.equal(roles.generator.own.state_dict()[next(iter(left["ema"]))], next(iter(left["ema"].values())))
    assert set(roles.own) >= {"real_score"}


def test_acting_nests_survives_errors_and_freezes_nothing(pipeline):
    roles, _ = roles_on(pipeline)
    moved(roles)
    network = roles.generator._network
    wanted = [answer(roles[role], pipeline) for role in TRAINED]
    flags = [p.requires_grad for p in network.net.parameters()]
    with network.acting("generator"):
        assert torch.equal(answer(roles.fake_score, pipeline), wanted[1])
        with pytest.raises(ZeroDivisionError), network.acting(None):
            raise ZeroDivisionError
        assert network.role == "generator"
        assert torch.equal(answer(roles.generator, pipeline), wanted[0])
    assert network.role is None
    assert flags == [p.requires_grad for p in network.net.parameters()]


@pytest.mark.parametrize("settings", [{}, {"norms": True}, {"alpha": 1.0}, {"targets": ("conv1", r".*\.to_[qk]")}])
def test_the_merged_network_is_stock_and_gives_what_the_role_gives(pipeline, settings, tmp_path):
    lora = LoRAConfig.model_validate({"rank": 4, "alpha": 8, **settings})
    roles, _ = roles_on(pipeline, lora)
    moved(roles)
    net = merged(pipeline.network, roles.generator.own.state_dict(), alpha=lora.alpha)
    net.save_pretrained(tmp_path)
    loaded = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == pipeline.network.state_dict().keys()
    alone = pipeline.denoiser()
    alone.net.load_state_dict(loaded.state_dict())
    expected = answer(roles.generator, pipeline)
    torch.testing.assert_close(answer(alone, pipeline), expected, rtol=0, atol=2e-5)
    assert (expected - answer(roles.real_score, pipeline)).abs().max() > 1e-2


def test_the_layers_are_pefts_own(pipeline):
    roles, _ = roles_on(pipeline)
    moved(roles)
    state, config = lora_layers(roles.fake_score.own.state_dict(), alpha=SMALL.alpha)
    alone = pipeline.denoiser()
    inject_adapter_in_model(config, alone.net)
    told = set_peft_model_state_dict(alone.net, state)
    assert not told.unexpected_keys
    assert_alike(answer(alone.eval(), pipeline), answer(roles.fake_score, pipeline))


def test_layers_with_norms_are_no_lora(pipeline):
    roles, _ = roles_on(pipeline, LoRAConfig(norms=True))
    with pytest.raises(UserError, match=r"lora\.norms"):
        lora_layers(roles.generator.own.state_dict())


@pytest.mark.parametrize("norms", [False, True])
def test_a_checkpoint_holds_adapters_and_resumes_as_if_nothing_had_happened(pipeline, norms):
    lora = LoRAConfig(rank=4, norms=norms)
    whole, first = stage_on(pipeline, lora), stage_on(pipeline, lora)
    for _ in range(2):
        whole.cycle(), first.cycle()
    snapshot = copy.deepcopy(first.snapshot())
    assert set(snapshot.tensors) == {
        *("generator", "fake_score", "discriminator", "ema", "guard"),
        *("optimizer.generator", "optimizer.fake_score", "optimizer.discriminator"),
    }
    own = set(first.roles.generator.state_dict())
    assert set(snapshot.tensors["generator"]) == set(snapshot.tensors["fake_score"]) == own
    assert set(snapshot.tensors["ema"]) == own
    second = stage_on(pipeline, lora)
    moved(second.roles)
    second.restore(snapshot)
    for role in (*TRAINED, "discriminator"):
        assert torch.equal(small_run.parameters(first, role), small_run.parameters(second, role))
    for _ in range(2):
        whole.cycle(), second.cycle()
    for role in (*TRAINED, "discriminator"):
        assert_alike(small_run.parameters(whole, role), small_run.parameters(second, role), within=1e-3)
    with whole.ema.applied(), second.ema.applied():
        assert_alike(answer(whole.roles.generator, pipeline), answer(second.roles.generator, pipeline), within=1e-3)


def test_one_rank_more_than_a_layer_is_wide_is_enough(pipeline):
    stage = stage_on(pipeline, LoRAConfig(rank=64))
    before = small_run.parameters(stage, "generator").clone()
    for _ in range(2):
        stage.cycle()
    assert not torch.equal(before, small_run.parameters(stage, "generator"))


def test_norms_are_trained_by_each_role(pipeline):
    stage = stage_on(pipeline, LoRAConfig(rank=4, norms=True))
    for _ in range(3):
        stage.cycle()
    states = [stage.roles[role].own.state_dict() for role in TRAINED]
    clean = pipeline.network.state_dict()
    norms = [key for key in states[0] if "lora" not in key]
    assert set(norms) == {
        f"{name}.{kind}"
        for name, m in pipeline.network.named_modules()
        for kind, p in m.named_parameters(recurse=False)
        if isinstance(m, nn.GroupNorm) or (isinstance(m, nn.Linear) and kind == "bias")
    }
    assert sum(not torch.equal(states[0][key], clean[key]) for key in norms) > len(norms) / 2
    assert not any(torch.equal(states[0][key], states[1][key]) for key in norms if states[0][key].sub(clean[key]).any())


def test_a_bf16_base_keeps_fp32_adapters_and_gradients(pipeline):
    exact = answer(pipeline.denoiser(), pipeline)
    stage = stage_on(pipeline, precision="bf16")
    roles = stage.roles
    assert {p.dtype for p in pipeline.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for role in TRAINED for p in roles.parameters(role)} == {torch.float32}
    assert answer(roles.generator, pipeline).dtype == torch.float32
    torch.testing.assert_close(answer(roles.generator, pipeline), exact, rtol=0, atol=0.05)
    record = small_run.recorded(stage, 2)
    for role in TRAINED:
        assert all(g.dtype == torch.float32 and g.isfinite().all() and g.any() for g in record.gradients[role])


def test_what_cannot_work_is_refused_by_name(pipeline):
    with pytest.raises(UserError, match=r"gradient_checkpointing.*Linear"):
        SharedNetwork(nn.ModuleList([nn.Linear(2, 2)])[0], [], Adaptation(targets=[""])).checkpoint_blocks()


def test_an_alias_shares_tensors_and_no_modules():
    net = tiny.unet()
    other = alias(net)
    assert all(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert {id(m) for m in net.modules()}.isdisjoint({id(m) for m in other.modules()})


def test_an_update_is_added_to_a_base_in_half_precision_before_it_is_rounded():
    base = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    before = base.weight.detach().float()
    state = {"0.lora_A.weight": torch.randn(2, 8), "0.lora_B.weight": torch.randn(8, 2)}
    found = merged(nn.Sequential(base), state, alpha=3.0)[0].weight
    update = state["0.lora_B.weight"] @ state["0.lora_A.weight"] * 1.5
    assert torch.equal(found, (before + update).to(torch.bfloat16))
    assert not torch.equal(found, before.to(torch.bfloat16) + update.to(torch.bfloat16)), "rounded twice, it is another"
    assert torch.equal(base.weight.float(), before)
