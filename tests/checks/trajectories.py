"""Objectives of the consistency family, against exact flow maps of Gaussians."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from closed_forms import PLANE, PROCESSES, streams
from flow_maps import Belief, clean_at, exactly, gaussian_batch, jumping, knowing_roles, mapped, two_times
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Objective
from fastgen.objectives.parts.curricula import Even
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import SOLVERS, Guidance
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.pdd import ParallelDecoding
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.objectives.trajectory.tscd import SegmentedConsistency
from fastgen.process import Discrete, Process, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

NONE, NO_GAN = Guidance(), GAN(0.0)
GRID = even_grid(4)


def below(steps: int, least: float) -> Callable[[Tensor], Tensor]:
    """The end of the segment, of `steps` even ones, that a time lies in; the times on an edge belong to the lower."""
    return lambda t: ((torch.ceil(t * steps - 1e-9) - 1) / steps).clamp(min=least)


def known(name: str, process: Process) -> tuple[Objective, Belief]:
    """An objective, and what a network says that is its fixed point where the teacher's solver makes no error."""
    least = 1 / 1000 if isinstance(process, Discrete) else 0.0
    quarters, halves = jumping(below(4, least)), jumping(below(2, least))
    table: dict[str, tuple[Objective, Belief]] = {
        "cd": (ConsistencyDistillation(solver="ddim", curriculum=Even(18, decay=0.0)), clean_at(least)),
        "lcm": (LatentConsistency(teacher_guidance=NONE, ema=0.0), clean_at(least)),
        "pcm": (PhasedConsistency(teacher_guidance=NONE, gan=NO_GAN), quarters),
        "tscd": (SegmentedConsistency(teacher_guidance=NONE, ema=0.0, segments=2), halves),
        "tdd": (TargetDriven(teacher_guidance=NONE, gan=NO_GAN, dropout=0.0, window=0.0, jitter=0.0), quarters),
        "progressive": (Progressive(), jumping(below(4, 0.0))),
        "shortcut": (Shortcut(bootstrapped=1.0, ema=0.0), two_times),
    }
    return table[name]


def loss_and_slope(objective: Objective, roles: Roles, batch: Batch) -> tuple[float, Tensor]:
    with roles.training(("generator",)):
        loss = sum(objective.generator(roles, batch).values())
        assert loss.requires_grad, "the loss does not reach the generator"
        (slope,) = torch.autograd.grad(loss, roles["generator"].bias)
    return loss.item(), slope


def check_fixed_point(process: Process, name: str) -> None:
    """Exact flow maps of network and solver: no loss, no gradient. A biased network is pulled back."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(SOLVERS, "ddim", exactly(process))
        monkeypatch.setattr("fastgen.objectives.trajectory.progressive.ddim", exactly(process))
        _check_fixed_point(process, name)


def _check_fixed_point(process: Process, name: str) -> None:
    objective, belief = known(name, process)
    roles = knowing_roles(objective, process, belief, grids=[GRID])
    for seed in range(2):
        loss, slope = loss_and_slope(objective, roles, gaussian_batch(seed=seed))
        assert loss < 1e-9
        assert slope.norm() < 1e-6
    if name == "shortcut":
        return  # two biased halves make a biased whole: a test of its velocities holds it
    bias = torch.tensor([0.3, -0.2], dtype=torch.float64)
    roles.generator.bias.data.copy_(bias)
    loss, slope = loss_and_slope(objective, roles, gaussian_batch())
    assert loss > 1e-6
    assert (slope @ bias) / (slope.norm() * bias.norm()) > 0.9


def check_cell_of_progressive_distillation() -> None:
    """Two DDIM steps by hand; max(SNR, 1) times the squared error of x0, on the variance-preserving process."""
    process, objective = PROCESSES["vp"], Progressive()
    roles = knowing_roles(objective, process, clean_at(0.0), grids=[even_grid(1)])
    batch = gaussian_batch()
    eps = batch.script[0]
    loss, _ = loss_and_slope(objective, roles, batch)
    times = [torch.tensor(u, dtype=torch.float64) for u in (1.0, 0.5, 0.0)]
    x = process.renoise(batch.x0, times[0].expand(64), eps)
    x0 = mapped(process, x, times[0].expand(64), times[2].expand(64))
    for t, s in pairwise(times):
        belief = roles.real_score(x, t.expand(64), batch.cond)
        x = process.alpha(s) * belief.x0 + process.sigma(s) * belief.eps
    snr = (process.alpha(times[0]) / process.sigma(times[0])) ** 2
    assert loss == pytest.approx((max(float(snr), 1.0) * (x0 - x).square().mean()).item(), rel=1e-6)


def check_truncated_weight() -> None:
    """At the finest of 8 steps the SNR of a flow is (7 / 1)^2."""
    process, objective = PROCESSES["flow"], Progressive()
    roles = knowing_roles(objective, process, jumping(below(8, 0.0)), grids=[torch.tensor([1 / 8]).double()])
    roles.generator.bias.data.fill_(0.1)
    loss, _ = loss_and_slope(objective, roles, gaussian_batch())
    roles.generator.bias.data.zero_()
    exact, _ = loss_and_slope(objective, roles, gaussian_batch())
    assert loss - exact > 0
    x0_error = (0.1 / 8) ** 2
    assert loss == pytest.approx(49 * x0_error, rel=0.2)


TRAINED: dict[str, Objective] = {
    "cd": ConsistencyDistillation(),
    "ct": ConsistencyTraining(),
    "lcm": LatentConsistency(ema=0.0),
    "pcm": PhasedConsistency(gan=NO_GAN),
    "tscd": SegmentedConsistency(ema=0.0),
    "tdd": TargetDriven(gan=NO_GAN),
    "shortcut": Shortcut(ema=0.0),
    "self_shortcut": SelfShortcut(ema=0.0),
    "progressive": Progressive(),
    "pdd": ParallelDecoding(heads=4),
}


def check_target_is_constant(name: str) -> None:
    """The gradient is that of one call of the generator: with its other calls frozen, nothing changes."""
    objective = TRAINED[name]
    roles = toy_roles(PROCESSES["flow"], PLANE, [even_grid(2)], objective=objective, updates=0)
    graphs: list[bool] = []
    roles.generator.register_forward_hook(lambda m, args, out: graphs.append(out.x0.requires_grad))
    with roles.training(("generator",)):
        loss = sum(objective.generator(roles, toy_batch(PLANE, 32, *streams().values())).values())
        loss.backward()
    assert graphs.count(True) == 1
    assert graphs[-1], "the call with gradient comes after its target"
    assert all(p.grad is None for role in ("real_score", "target", "fake_score") for p in roles[role].parameters())
    assert sum(p.grad.norm() for p in roles.parameters("generator") if p.grad is not None) > 0
