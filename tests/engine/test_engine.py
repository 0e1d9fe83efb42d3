"""The training loop on tiny networks: who moves, by how much, and what happens when a number is not finite."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import small_run
import tiny
import torch
from torch import nn

from fastgen.config.optimizer import OptimConfig
from fastgen.engine import optim, pairs
from fastgen.engine.ema import EMA
from fastgen.engine.optim import RoleOptimizer
from fastgen.engine.stage import Turned
from fastgen.errors import UserError
from fastgen.models.owned import owned
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2, Pretrain
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed, Shared
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.sampling.sampler import ode
from fastgen.seeds import seed_of, stream

TRAINED = {"generator": 1, "fake_score": 3, "discriminator": 3}  # updates per cycle
THREE_FAKE_TURNS = DMD2(ratio=3, guidance=Fixed(1.5))  # unguided, the first generator gradient is exactly zero
ONE_FAKE_TURN = DMD2(ratio=1, guidance=Fixed(1.5))

DROPPING = (
    Pretrain(label_dropout=0.5),
    DMD2(ratio=1, guidance=Shared(1.5, 1.5, dropout=0.5)),
    TargetDriven(dropout=0.5, teacher_guidance=Guidance(2.0, 2.0), gan=GAN(0.0)),
)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(tiny.class_conditional())


def run(pipeline, objective, cycles, **settings):
    return small_run.recorded(small_run.stage(pipeline, objective, **settings), cycles)


def test_a_cycle_moves_exactly_the_roles_it_trains(pipeline):
    stage = small_run.stage(pipeline, THREE_FAKE_TURNS)
    before = {role: small_run.parameters(stage, role).clone() for role in stage.roles.members}
    stage.cycle()
    moved = {role for role in before if not torch.equal(before[role], small_run.parameters(stage, role))}
    assert moved == set(TRAINED) == set(before) - {"real_score"}
    assert {role: optimizer.updates for role, optimizer in stage.optimizers.items()} == TRAINED
    assert not any(p.requires_grad or p.grad is not None for m in stage.roles.members.values() for p in m.parameters())
    assert (stage.position.cycle, stage.position.images, stage.position.drawn) == (1, 4, 4 * 4)


def test_a_stage_is_over_by_its_images_or_its_minutes_whichever_come_first(pipeline):
    stage = small_run.stage(pipeline, small_run.KD, images=400, minutes=2.0)
    position = stage.position
    for position.images, position.seconds, share in [(0, 0.0, 0.0), (100, 12.0, 0.25), (100, 90.0, 0.75)]:
        assert (stage.share, stage.done) == (share, False)
    for position.images, position.seconds in [(100, 120.0), (400, 12.0), (500, 300.0)]:
        assert (stage.share, stage.done) == (1.0, True)


def test_the_average_follows_generator_updates_only(pipeline):
    stage = small_run.stage(pipeline, THREE_FAKE_TURNS, ema=0.25)
    expected = small_run.parameters(stage, "generator").clone()
    for n in range(1, 4):
        stage.cycle()
        decay = min(0.25, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * small_run.parameters(stage, "generator")
        assert stage.ema.updates == n
        torch.testing.assert_close(torch.cat([a.flatten() for a in stage.ema.averages.values()]), expected)


def test_the_average_is_lent_and_taken_back():
    layer = nn.Linear(2, 2)
    ema, live = EMA(layer, decay=0.5), layer.weight.detach().clone()
    nn.init.zeros_(layer.weight)
    with ema.applied():
        assert torch.equal(layer.weight, live)
    assert not layer.weight.any()


def test_each_role_is_clipped_by_its_own_norm(pipeline):
    largest = {"generator": 1e-4, "fake_score": 1e-3, "discriminator": 1e-5}
    stage = small_run.stage(pipeline, ONE_FAKE_TURN, roles={role: {"clip": clip} for role, clip in largest.items()})
    record = small_run.recorded(stage, 1)
    for role, clip in largest.items():
        assert record.figures[0][f"{role}/grad"] > clip
        assert float(record.gradients[role][0].norm()) == pytest.approx(clip, rel=0.02)


def rates(total, **settings):
    """The learning rates of `total` updates."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = RoleOptimizer(owned(nn.ParameterList([parameter])), OptimConfig(lr=1.0, **settings), total=total)
    used = []
    for _ in range(total):
        parameter.grad = torch.ones(1)
        optimizer.step()
        used.append(optimizer.optimizer.param_groups[0]["lr"])
    return used


def test_the_learning_rate_warms_up_and_then_follows_its_schedule():
    assert rates(5, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(6, warmup=2, schedule="linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_updates_beyond_the_planned_ones_have_rate_zero(schedule):
    optimizer = RoleOptimizer(
        owned(nn.ParameterList([nn.Parameter(torch.ones(1))])), OptimConfig(schedule=schedule), total=4
    )
    optimizer.updates = 7  # other roles go on while an overflow holds the generator up
    assert optimizer.lr == 0


def test_the_optimizer_is_adamw_with_the_settings_of_its_role(pipeline):
    stage = small_run.stage(
        pipeline, DMD2(), optim={"lr": 0.25, "betas": (0.5, 0.75)}, roles={"fake_score": {"weight_decay": 0.5}}
    )
    generator, fake = (stage.optimizers[role].optimizer.param_groups[0] for role in ("generator", "fake_score"))
    assert (generator["lr"], generator["betas"], generator["weight_decay"]) == (0.25, (0.5, 0.75), 0.0)
    assert (fake["lr"], fake["betas"], fake["weight_decay"]) == (0.25, (0.5, 0.75), 0.5)
    decayed = nn.Parameter(torch.ones(3))
    decayed.grad = torch.zeros(3)
    RoleOptimizer(owned(nn.ParameterList([decayed])), OptimConfig(lr=0.1, weight_decay=0.5), total=1).step()
    torch.testing.assert_close(decayed.detach(), torch.full((3,), 1 - 0.1 * 0.5))


def test_devices_without_a_fused_optimizer_take_the_same_steps(pipeline, monkeypatch):
    fused = small_run.stage(pipeline, small_run.KD)
    monkeypatch.setattr(optim, "FUSED", ())
    plain = small_run.stage(pipeline, small_run.KD)
    assert fused.optimizers["generator"].optimizer.param_groups[0]["fused"]
    assert not plain.optimizers["generator"].optimizer.param_groups[0]["fused"]
    for stage in (fused, plain):
        stage.cycle()
    torch.testing.assert_close(small_run.parameters(fused, "generator"), small_run.parameters(plain, "generator"))


def test_micro_batches_add_up_to_their_batch(pipeline):
    whole, parts = (run(pipeline, small_run.KD, 2, batch=8, micro_batch=m) for m in (8, 2))
    for a, b in zip(whole.figures, parts.figures, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    for a, b in zip(whole.gradients["generator"], parts.gradients["generator"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.parameters, parts.parameters, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("objective", [Shortcut(bootstrapped=0.25), SelfShortcut()], ids=["shortcut", "self_shortcut"])
def test_what_divides_a_batch_into_parts_knows_rows_by_their_place_in_it(pipeline, objective):
    """A quarter of eight rows has long jumps, and that of micro-batches of one too."""
    stages = [small_run.stage(pipeline, objective, steps=(2, 4), batch=8, micro_batch=m) for m in (8, 2, 1)]
    whole, *parts = (small_run.recorded(stage, 1) for stage in stages)
    for part in parts:
        assert part.figures[0] == pytest.approx(whole.figures[0], rel=1e-4)
        torch.testing.assert_close(part.gradients, whole.gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("objective", DROPPING, ids=lambda objective: type(objective).__name__)
def test_what_is_dropped_depends_on_the_rows_alone(objective):
    """A network's own layers of dropout drop nothing; conditions are dropped by row, however a batch is divided."""
    pipeline = Pipeline(tiny.class_conditional())
    for block in pipeline.network.modules():
        if isinstance(block, nn.Dropout):
            block.p = 0.5
    pipeline.network.train()
    wholes = [run(pipeline, objective, 1, batch=8, micro_batch=8) for _ in range(2)]  # the global stream has moved on
    parts = run(pipeline, objective, 1, batch=8, micro_batch=2)
    assert wholes[0].figures == wholes[1].figures
    assert parts.figures[0] == pytest.approx(wholes[0].figures[0], rel=1e-4)
    torch.testing.assert_close(parts.gradients, wholes[0].gradients, atol=1e-5, rtol=1e-3)


def test_a_batch_that_cannot_be_shared_is_refused(pipeline):
    four = SimpleNamespace(num_processes=4, process_index=0, device=small_run.CPU)
    with pytest.raises(UserError, match=r"train.batch is 6, .*4 processes with micro-batches of 1 .*multiple of 4"):
        small_run.stage(pipeline, small_run.KD, batch=6, accelerator=four)


def rollouts(pipeline, *, reuse):
    """How often the generator generates in one cycle."""
    stage, calls = small_run.stage(pipeline, THREE_FAKE_TURNS, reuse=reuse), []
    stage.roles.generator.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    stage.cycle()
    return calls, stage.position.drawn


def test_turns_share_a_rollout_or_draw_fresh_ones(pipeline):
    shared, drawn = rollouts(pipeline, reuse=True)
    assert (len(shared), drawn) == (1, 4)
    fresh, drawn = rollouts(pipeline, reuse=False)
    assert (len(fresh), drawn) == (4, 16)
    assert not any(torch.equal(fresh[0], other) for other in fresh[1:])


def test_streams_follow_from_their_position_alone():
    assert torch.equal(*(torch.randn(4, generator=stream(small_run.CPU, 0, 1, 2)) for _ in range(2)))
    assert len({seed_of(0, 1, 2), seed_of(0, 2, 1), seed_of(0, 12), seed_of(0, 1, "2"), seed_of(1, 1, 2)}) == 5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_figures_are_read_when_the_cycle_is_over(pipeline, monkeypatch, precision):
    """But for fp16, whose loss scaler has to know each turn's."""
    stage, order = small_run.stage(pipeline, THREE_FAKE_TURNS, precision=precision), []
    read = Turned.figures.func
    for role in ("generator", "fake_score"):
        optimizer = stage.optimizers[role]
        step = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda step=step, **told: order.append("step") or step(**told))
    monkeypatch.setattr(Turned, "figures", property(lambda turned: order.append("read") or read(turned)))
    stage.cycle()
    assert order.index("read") == (4 if precision == "fp32" else 0)
    assert order.count("step") == 4 or precision == "fp16"


def test_gradient_checkpointing_changes_no_gradient(pipeline):
    plain, *others = (run(pipeline, ONE_FAKE_TURN, 1, gradient_checkpointing=on) for on in (False, True, 2))
    for role, checkpointed in product(plain.gradients, others):
        torch.testing.assert_close(plain.gradients[role], checkpointed.gradients[role], atol=1e-7, rtol=1e-5)


def test_bf16_computes_coarsely_and_keeps_trained_weights_fine(pipeline):
    stage = small_run.stage(pipeline, ONE_FAKE_TURN, precision="bf16")
    exact = run(pipeline, ONE_FAKE_TURN, 1)
    coarse = small_run.recorded(stage, 1)
    dtypes = {role: {p.dtype for p in stage.roles.parameters(role)} for role in stage.roles.members}
    assert dtypes.pop("real_score") == {torch.bfloat16}
    assert all(found == {torch.float32} for found in dtypes.values())
    assert coarse.figures[0] == pytest.approx(exact.figures[0], rel=0.1, abs=1e-3)
    assert coarse.figures[0] != exact.figures[0]


def test_label_dropout_and_images_reach_a_pretrained_teacher(pipeline):
    stage = small_run.stage(pipeline, Pretrain(label_dropout=1.0), batch=8, optim={"lr": 1e-2, "eps": 1e-8})
    losses = [stage.cycle()["generator/denoise"] for _ in range(12)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    embedding = stage.roles.generator.net.class_embedding.weight - pipeline.network.class_embedding.weight
    assert embedding[: tiny.CLASSES].abs().max() == 0
    assert embedding[tiny.CLASSES].abs().max() > 0


def test_pairs_are_made_once_kept_and_match_their_conditioning(pipeline, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pairs, "ode", lambda *args, **kwargs: made.append(1) or ode(*args, **kwargs))
    monkeypatch.setattr(pairs, "MOST", 4)
    first, again = (small_run.teacher_pairs(pipeline, tmp_path, key="a") for _ in range(2))
    assert len(made) == 2  # batches of 4 and 2
    assert torch.equal(first.x0, again.x0)
    for _ in range(2):
        small_run.teacher_pairs(pipeline, tmp_path, key="b")
    assert len(made) == 4
    item = first.items(torch.tensor([5]))
    cond = pipeline.condition(1, labels=item.labels)
    times = pipeline.teacher_grid(small_run.PAIRS.steps).tolist()
    by_hand = ode(pipeline.denoiser(), first.eps[5:6], cond, times, guidance=small_run.PAIRS.guidance)
    torch.testing.assert_close(first.x0[5:6], by_hand, atol=1e-5, rtol=1e-5)
    other = pipeline.condition(1, labels=(item.labels + 1) % tiny.CLASSES)
    assert not torch.allclose(by_hand, ode(pipeline.denoiser(), first.eps[5:6], other, times, guidance=2.0), atol=1e-4)


def test_kd_reads_each_pair_with_its_own_conditioning(pipeline):
    stage = small_run.stage(pipeline, small_run.KD)
    seen = stage.feed.batch(14, 4, rng=stream(small_run.CPU, 0), shared_rng=stream(small_run.CPU, 0))
    rows = torch.tensor([14, 15, 0, 1])  # of 16 pairs
    assert torch.equal(seen.pair.eps, stage.feed.pairs.eps[rows])
    labels = stage.feed.pairs.items(rows).labels
    wanted = pipeline.condition(4, labels=labels)
    assert torch.equal(seen.cond.batched["class_labels"], wanted.batched["class_labels"])


@pytest.mark.parametrize(
    ("kind", "reuse", "encoded"), [("logistic", False, 3), ("relativistic", False, 4), ("relativistic", True, 1)]
)
def test_images_are_encoded_in_the_turns_that_read_them(pipeline, monkeypatch, kind, reuse, encoded):
    objective = DMD2(ratio=3, guidance=Fixed(1.5), gan=GAN(kind=kind))
    stage, rows = small_run.stage(pipeline, objective, reuse=reuse), []
    encode = pipeline.codec.encode
    monkeypatch.setattr(pipeline.codec, "encode", lambda images: rows.append(len(images)) or encode(images))
    stage.cycle()
    assert rows == [4] * encoded
