"""Verbs of distribution matching: the two scores of a generated sample, and the training of the second."""

from dataclasses import dataclass

from torch import Tensor

from ..models.roles import Roles
from ..process import Latent, Prediction, Time, TimeLaw
from .base import Batch
from .ops import RowName, denoising_loss, guided, look, mean_abs, renoised
from .rollout import RolloutName, landed


@dataclass(frozen=True)
class Scores:
    """What the real and the fake score believe of the same renoised samples at times t [B]."""

    t: Time
    real: Prediction
    fake: Prediction


def compare(roles: Roles, batch: Batch, x0: Latent, *, law: TimeLaw, guidance: float) -> Scores:
    """Both scores of generated samples x0, without autograd; only the real one is guided."""
    noised = renoised(roles, batch, x0.detach(), law=law)
    real = guided(look, roles.real_score, noised.x_t, noised.t, batch.cond, w=guidance)
    fake = look(roles.fake_score, noised.x_t, noised.t, batch.cond)
    return Scores(noised.t, real, fake)


def matching_gradient(x0: Latent, scores: Scores) -> Latent:
    """DMD's gradient (fake - real) / mean|x0 - real|, the mean over each sample (arXiv:2311.18828, eq. 7 and 8).

    Where so little noise was added that real and x0 agree in fp32, the floor keeps 0 / 0 and rounding errors out.
    """
    return (scores.fake.x0 - scores.real.x0) / mean_abs(x0.detach() - scores.real.x0).clamp(min=1e-5)


def fake_denoising(roles: Roles, batch: Batch, rollout: RolloutName, *, law: TimeLaw, space: RowName) -> Tensor:
    """Denoising loss of the fake score on generated samples, unguided."""
    x0 = landed(rollout, roles, batch).x
    noised = renoised(roles, batch, x0, law=law)
    prediction = roles.fake_score(noised.x_t, noised.t, batch.cond)
    return denoising_loss(prediction, x0, noised.eps, space=space)
