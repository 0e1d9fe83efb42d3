"""Training by rewards: what a sample is worth, and the tilted density at which a student comes to rest."""

from dataclasses import replace

import pytest
import torch
from closed_forms import COVARIANCE, MEAN, OTHER_FACTOR, OTHER_MEAN, PLANE, close, streams
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.rewards import Rewards
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch
from fastgen.objectives.parts.rewarded import advantages, grouped, spread
from fastgen.objectives.reward.advantage_flow import AdvantageFlow
from fastgen.process import Flow, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture
from fastgen.proofs.toy import toy_batch

AXIS = torch.tensor([0.6, -0.8], dtype=torch.float64)
FACTOR = torch.linalg.cholesky(COVARIANCE)
UNCLIPPED = 0.6826894921370859
"""Of a normal law, within one deviation of its mean."""


def linear(*weights: float) -> Rewards:
    """Points are worth more along an axis."""
    shares = weights or (1.0,)
    return Rewards(lambda x: x, {f"r{i}": lambda x, _: x @ AXIS.to(x) for i in range(len(shares))}, shares)


def roles_of(generator: AffineGenerator, reference: AffineGenerator, rewards: Rewards, **more: object) -> Roles:
    members = {"generator": generator, "target": affine(generator), "real_score": reference, "rewards": rewards}
    return Roles(members | more, Plan([even_grid(1)]))


def affine(like: AffineGenerator, shift: Tensor | float = 0.0) -> AffineGenerator:
    return AffineGenerator(like.process, like.mean.detach() + shift, like.factor.detach())


def plain(count: int, seed: int = 0) -> Batch:
    batch = toy_batch(PLANE, count, *streams(seed).values())
    return replace(batch, cond=PLANE.uncond(count), real=None)


# What a sample is worth


def test_a_sample_is_worth_what_it_exceeds_its_own_group_by():
    roles = roles_of(*2 * [AffineGenerator(Flow(), MEAN, FACTOR)], linear())
    scores = torch.tensor([[10.0, 11.0, 12.0, 0.0, 0.0, 0.0]])
    found = advantages(roles, scores, 3)
    close(found, torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]))
    spread_over_all = torch.tensor([-1.0, 0, 1, 0, 0, 0]).std(correction=0)
    assert spread_over_all < 1, "these two were clipped"
    close(advantages(roles, torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 2), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    half = advantages(roles, torch.tensor([[0.0, 1.0, 0.0, 9.0]]), 2)
    close(half[:2], torch.tensor([-0.5, 0.5]) / torch.tensor([-0.5, 0.5, -4.5, 4.5]).std(correction=0))


def test_rewards_of_other_units_count_by_their_weights():
    roles = roles_of(*2 * [AffineGenerator(Flow(), MEAN, FACTOR)], linear(3.0, 1.0))
    up, down = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    close(advantages(roles, torch.stack([up, 1000 * down]), 2), torch.tensor([-0.5, 0.5, -0.5, 0.5]))
    assert not advantages(roles, torch.ones(2, 4), 2).any(), "all alike"


def test_a_group_is_asked_for_one_thing():
    batch = replace(toy_batch(PLANE, 6, *streams().values()), asked=tuple("abcdef"))
    shared = grouped(batch, 3)
    assert shared.asked == ["a", "a", "a", "d", "d", "d"]
    labels, all_labels = (one.cond.batched["class_labels"] for one in (shared, batch))
    assert torch.equal(labels, all_labels[torch.tensor([0, 0, 0, 3, 3, 3])])
    assert shared.size == 6
    assert AdvantageFlow(group=3).needs.group == 3
    with pytest.raises(UserError, match=r"group is 4, and a micro-batch has 6 .* multiple of 4"):
        grouped(batch, 4)


def test_the_spread_is_that_within_groups():
    close(spread(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), 2), torch.tensor(1.0))


def test_judges_are_watched_and_no_more():
    seen: list[bool] = []

    def judge(images: Tensor, asked: object) -> Tensor:
        seen.append(images.requires_grad or torch.is_grad_enabled())
        return images.flatten(1).sum(dim=1)

    rewards = Rewards(lambda x: x, {"r": lambda x, _: x[:, 0]}, [1.0], {"j": judge})
    x = torch.tensor([[1.0, 3.0], [3.0, 5.0]], requires_grad=True)
    scores = rewards(x, ())
    close(scores, torch.tensor([[1.0, 2.0]]))  # images lie in [0, 1] where samples lie in [-1, 1]
    assert scores.requires_grad
    assert seen == [False]
    assert {name: float(value) for name, value in rewards.figures.items()} == {"r": 1.5, "j": 4.0}
    assert not any(value.requires_grad for value in rewards.figures.values())
    assert not rewards.state_dict(), "published weights are no part of a checkpoint"


# AdvantageFlow


def slope(objective: AdvantageFlow, roles: Roles, batch: Batch) -> Tensor:
    """Of the loss by the affine generator's mean, [2]."""
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch)["advantage"]
        (found,) = torch.autograd.grad(loss, roles.generator.mean)
    return found


PLAIN = AdvantageFlow(weight="none", group=64, ema=0.5, reference=0.3)


def tilted(objective: AdvantageFlow, share: float) -> Tensor:
    """How far exp(r / beta) moves the mean: COVARIANCE AXIS / beta."""
    deviation = (AXIS @ COVARIANCE @ AXIS).sqrt() * (1 - 1 / objective.group) ** 0.5
    beta = objective.reference * deviation / (share * (1 - 1 / objective.group))
    return COVARIANCE @ AXIS / beta


def test_it_rests_at_the_tilted_density():
    """And pulls there from the reference, and back from twice as far."""
    reference = AffineGenerator(Flow(), MEAN, FACTOR)
    found = []
    for far in (0.0, 1.0, 2.0):
        student = affine(reference, far * tilted(PLAIN, UNCLIPPED))
        found.append(slope(PLAIN, roles_of(student, reference, linear()), plain(2**15)))
    assert found[1].norm() < 0.03 * found[0].norm()
    for end, sign in ((found[0], -1), (found[2], 1)):
        assert torch.cosine_similarity(end, sign * (COVARIANCE @ AXIS), dim=0) > 0.999


def test_one_update_leads_to_the_reweighted_density():
    """E[x0] under (1 + A / old) p_old: there the loss is least while the samples stay those of the old student."""
    objective = replace(PLAIN, reference=0.0)
    old = AffineGenerator(Flow(), MEAN, FACTOR)
    moved = tilted(replace(objective, reference=1.0), UNCLIPPED) / objective.old
    roles = roles_of(affine(old, moved), old, linear(), target=old)
    objective = replace(objective, ema=1 - 1e-9)  # the old student is who draws
    there, here = (slope(objective, replace_generator(roles, affine(old, far * moved)), plain(2**15)) for far in (1, 0))
    assert there.norm() < 0.03 * here.norm()


def replace_generator(roles: Roles, generator: AffineGenerator) -> Roles:
    return Roles(roles.members | {"generator": generator}, roles.plan)


@pytest.mark.parametrize("weight", ["l1", "none"])
def test_the_loss_of_each_sample_is_the_signed_regression(weight: str):
    """Against the sum of squares by hand, of samples whose worth is known."""
    objective = AdvantageFlow(weight=weight, group=2, old=1.5, reference=0.2, ema=1 - 1e-9)
    now, old, reference = (AffineGenerator(Flow(), MEAN + shift, OTHER_FACTOR) for shift in (0.3, 0.1, 0.0))
    roles = roles_of(now, reference, linear(), target=old)
    batch, drawn = plain(4), plain(4)
    z, eps = drawn.noise(), None
    x0 = old(z, drawn.full(1.0), drawn.cond).x0
    torch.randint(1, (4,), generator=drawn.rng)  # the times, all the same
    eps = drawn.noise()
    f, f_old, f_ref = (model(eps, drawn.full(1.0), drawn.cond).x0 for model in (now, old, reference))
    worth = advantages(roles, (((x0 + 1) / 2) @ AXIS.to(x0))[None], 2)
    norm = (f - x0).abs().mean(dim=1) if weight == "l1" else torch.ones(4)
    squares = [(f - other).square().mean(dim=1) for other in (x0, f_old, f_ref)]
    expected = (worth * squares[0] + 1.5 * squares[1] + 0.2 * squares[2]) / norm
    by_f = worth[:, None] * (f - x0) + 1.5 * (f - f_old) + 0.2 * (f - f_ref)  # times 2 / d, d = 2
    close(objective.generator(roles, batch)["advantage"], expected.mean())
    close(slope(objective, roles, plain(4)), (by_f / norm[:, None]).mean(dim=0).double())


def test_samples_compete_for_one_prompt():
    asked: list[str] = []

    def remember(x: Tensor, prompts: object) -> Tensor:
        asked.extend(prompts)
        return x[:, 0]

    student = AffineGenerator(Flow(), OTHER_MEAN, OTHER_FACTOR)
    roles = roles_of(student, student, Rewards(lambda x: x, {"r": remember}, [1.0]))
    AdvantageFlow(group=2).generator(roles, replace(plain(4), asked=tuple("abcd")))
    assert asked == ["a", "a", "c", "c"]
    assert roles.rewards.figures.keys() == {"r", "spread", "distance"}


def test_samples_that_are_all_alike_leave_the_student_alone():
    """Whatever they are worth: with f = f_old and nothing to tell samples apart there is no slope at all."""
    student = AffineGenerator(Flow(), OTHER_MEAN, OTHER_FACTOR)
    rewards = Rewards(lambda x: x, {"r": lambda x, _: torch.full((len(x),), 7.0)}, [1.0])
    assert not slope(replace(PLAIN, reference=0.0), roles_of(student, student, rewards), plain(64)).any()


def test_a_student_of_means_rests_at_the_tilted_density_at_every_time():
    """Not from pure noise alone: E[x0 | x_t] of the tilted density is where the loss of samples of it is least."""
    process, shift = Flow(), tilted(PLAIN, UNCLIPPED)
    exact = {far: ExactDenoiser(process, Mixture((MEAN + far * shift)[None], COVARIANCE[None])) for far in (0.0, 1.0)}
    batch = plain(2**15)
    x0 = exact[1.0].data.sample(batch.size, batch.rng)
    t = batch.full(0.6)
    x_t = process.renoise(x0, t, batch.noise())
    roles = roles_of(*2 * [AffineGenerator(process, MEAN, FACTOR)], linear())
    worth = advantages(roles, (x0 @ AXIS)[None], PLAIN.group)[:, None]
    f, f_ref = (exact[far](x_t, t, batch.cond).x0 for far in (1.0, 0.0))
    pull, hold = (worth * (f - x0)).mean(dim=0), PLAIN.reference * (f - f_ref).mean(dim=0)
    assert (pull + hold).norm() < 0.03 * hold.norm()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"group": 1}, "need at least 2"), ({"old": 1.0}, "has no minimum"), ({"ema": 1.0}, "ema is 1.0")],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        AdvantageFlow(**settings)
