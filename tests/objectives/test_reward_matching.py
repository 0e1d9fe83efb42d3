"""Distribution matching beside rewards, rewards alone, and rewards without derivatives, against closed forms."""

from dataclasses import replace

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    close,
    cubature,
    gaussian_roles,
    only,
    processes,
    scripted,
    streams,
)
from torch import Tensor

from fastgen.models.rewards import Rewards
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.objectives.parts.rewarded import policy_loss
from fastgen.objectives.reward.dmdr import DMDR
from fastgen.objectives.reward.refl import ReFL
from fastgen.process import Beta, Flow, Process, Uniform, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser
from fastgen.proofs.toy import toy_batch, toy_roles

AXIS = torch.tensor([0.6, -0.8], dtype=torch.float64)
FACTOR = torch.linalg.cholesky(COVARIANCE)
DEVIATION = (AXIS @ COVARIANCE @ AXIS).sqrt()


def along() -> Rewards:
    return Rewards(lambda x: x, {"r": lambda x, _: x @ AXIS.to(x)}, [1.0])


def slopes(objective: object, roles: Roles, batch: Batch) -> Tensor:
    """Of the whole loss by the affine generator's mean and factor, [6]."""
    generator = roles["generator"]
    with roles.training(("generator",)):
        loss = sum(objective.generator(roles, batch).values())
        found = torch.autograd.grad(loss, [generator.mean, generator.factor])
    return torch.cat([slope.flatten() for slope in found])


@processes
def test_matching_and_a_reward_rest_at_the_tilted_density(process: Process):
    """p_t exp(r / beta) / Z between Gaussians, of samples with a little noise; not half-way there, nor twice as far."""
    objective = DMDR(weight="kl", times=only(0.02), reward=0.5, rollout="one_step")
    beta = DEVIATION / (objective.reward * 2)  # two values a sample, over which the direction is a mean
    t = torch.tensor(0.02, dtype=torch.float64)
    noise = (process.sigma(t) / process.alpha(t)) ** 2 * torch.eye(2, dtype=torch.float64)
    tilt = (COVARIANCE + noise) @ AXIS / beta
    assert (tilt - COVARIANCE @ AXIS / beta).norm() < 0.05 * tilt.norm()
    z, eps = cubature(2)
    found = []
    for far in (0.5, 1.0, 2.0):
        student = AffineGenerator(process, MEAN + far * tilt, FACTOR)
        roles = gaussian_roles(
            process, generator=student, fake_score=ExactDenoiser(process, student.law()), rewards=along()
        )
        found.append(slopes(objective, roles, scripted(z, eps)))
    assert found[1].norm() < 1e-4 * found[0].norm()
    assert found[0][:2] @ AXIS < 0 < found[2][:2] @ AXIS


def test_without_a_reward_it_is_dmd2_and_before_its_start_too():
    process = Flow()
    z, eps = cubature(2)
    plain = DMD2(gan=DMDR().gan, rollout="one_step", times=only(0.5))
    mine = DMDR(rollout="one_step", times=only(0.5))
    roles = gaussian_roles(process, rewards=along())
    expected = slopes(plain, roles, scripted(z, eps))
    for same in (replace(mine, reward=0.0), replace(mine, start=10)):
        close(slopes(same, roles, scripted(z, eps)), expected)
    later = replace(scripted(z, eps), images=10)
    assert (slopes(replace(mine, start=10), roles, later) - expected).norm() > 1e-3


def test_renoising_moves_from_much_noise_to_even_times():
    objective = DMDR(renoise=1000)
    start, middle, end = (objective.at(images) for images in (0, 500, 1000))
    assert start.times == Beta(4.0, 1.5, 0.02, 0.98)
    assert start.fake_times == Beta(4.0, 1.5)
    close(torch.tensor([middle.times.a, middle.times.b]), torch.tensor([2.5, 1.25]))
    assert end is objective
    assert end.times == Uniform(0.02, 0.98)
    drawn: list[Tensor] = []

    class Noted(ExactDenoiser):
        def forward(self, x_t, t, cond, scalars=None):
            drawn.append(t)
            return super().forward(x_t, t, cond, scalars)

    roles = gaussian_roles(Flow(), fake_score=Noted(Flow(), PLANE), rewards=along())
    for turn in ("generator", "fake_score"):
        getattr(objective, turn)(roles, toy_batch(PLANE, 4096, *streams().values()))
    for times, mean in zip(drawn, (0.02 + 0.96 * 4 / 5.5, 4 / 5.5), strict=True):
        assert times.mean().item() == pytest.approx(mean, abs=0.01)


def test_settings_that_contradict_each_other_are_refused():
    for settings, words in (
        ({"reward": -1.0}, "a negative reward is a punishment"),
        ({"renoise": 5, "times": Uniform()}, "times is .*, but renoise is 5"),
        ({"form": "grpo", "group": 1}, "need at least 2"),
    ):
        with pytest.raises(ValueError, match=words):
            DMDR(**settings)
    assert DMDR(form="grpo").needs.steps == 2


def test_rewards_alone_stop_where_the_reference_holds_them():
    """-E[r] / deviation + reference |x0 - x0_ref|^2 / d, by hand."""
    objective = ReFL(reference=0.7)
    reference = AffineGenerator(Flow(), MEAN, FACTOR)
    shift = AXIS / DEVIATION * 2 / (2 * objective.reference)
    z, _ = cubature(2)
    found = []
    for far in (0.0, 1.0):
        student = AffineGenerator(Flow(), MEAN + far * shift, FACTOR)
        roles = gaussian_roles(Flow(), generator=student, real_score=reference, rewards=along())
        found.append(slopes(objective, roles, scripted(z)))
    assert found[1][:2].norm() < 1e-6
    close(found[0][:2], -AXIS / DEVIATION)
    assert slopes(ReFL(reference=0.0), roles, scripted(z))[:2] @ AXIS < 0


def test_the_policys_gradient_is_that_of_the_expected_worth():
    """By the first step's mean, through the noise that follows it; rewards give no derivative at all."""
    process, group, s = Flow(), 32, torch.tensor(0.3, dtype=torch.float64)
    student = AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR)
    blind = Rewards(lambda x: x.detach(), {"r": lambda x, _: x @ AXIS.to(x)}, [1.0])
    roles = Roles({"generator": student, "rewards": blind}, Plan([torch.stack([torch.ones_like(s), s])]))
    batch = toy_batch(PLANE, 2**16, *streams().values())
    with roles.training(("generator",)):
        (found,) = torch.autograd.grad(policy_loss(roles, batch, group), student.mean)
    jacobian = process.alpha(s) / process.sigma(s) * OTHER_FACTOR  # of the last sample by the first step's x0
    spread = jacobian @ OTHER_FACTOR @ OTHER_FACTOR.T @ jacobian.T + OTHER_FACTOR @ OTHER_FACTOR.T
    deviation = (AXIS @ spread @ AXIS).sqrt()
    share = 0.6827 * (1 - 1 / group) ** 0.5  # not clipped; a group's mean is not the law's
    expected = -share * jacobian.T @ AXIS / deviation / 2
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_the_policy_trains_every_step_but_the_last():
    roles = toy_roles(Flow(), PLANE, [even_grid(3)], updates=0, objective=DMDR(form="grpo"))
    called: list[tuple[float, bool]] = []
    roles.generator.register_forward_hook(
        lambda _module, told, _left: called.append((round(float(told[1][0]), 3), torch.is_grad_enabled()))
    )
    for seed in range(12):
        with roles.training(("generator",)):
            policy_loss(roles, toy_batch(PLANE, 16, *streams(seed).values()), 8)
    assert {t for t, graph in called if graph} == {1.0, 0.667}
    assert sum(graph for _, graph in called) == 12
    assert len(called) == 36, "each sample is carried to its end"


def test_dmdr_in_either_form_is_guided_as_its_family():
    assert DMDR(guidance=Fixed(3.0)).needs.null
    assert DMDR().needs.rewards
    assert DMDR(form="grpo").needs.sampler == "renoise"
