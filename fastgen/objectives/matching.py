"""Verbs of distribution matching: the two scores of a generated sample, and the training of the second."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..models.roles import Roles
from ..process import Latent, Prediction, Time, TimeLaw
from .base import Batch, Landing, Terms, Turn
from .gan import GAN, discriminator_losses, starts
from .guidance import GuidanceLaw
from .ops import Call, Noised, RowName, Scalars, denoising_loss, guided, renoised, through
from .rollout import RolloutName

NO_GAN = GAN(0.0)


@dataclass(frozen=True)
class Scores:
    """What the real and the fake score believe of the same renoised samples."""

    noised: Noised
    real: Prediction
    fake: Prediction

    @property
    def x_t(self) -> Latent:
        return self.noised.x_t

    @property
    def t(self) -> Time:
        return self.noised.t

    @property
    def truth(self) -> Latent:
        """What the fake score is taught at x_t, with the landing's graph: the landing itself where it is clean."""
        return self.noised.truth.x0

    @property
    def levels(self) -> tuple[Tensor, Tensor]:
        """alpha and sigma at the times, [B] each."""
        return self.real.process.alpha(self.t), self.real.process.sigma(self.t)


@runtime_checkable
class Matching(Protocol):
    """The settings that every objective with a real and a fake score has."""

    @property
    def guidance(self) -> GuidanceLaw: ...

    @property
    def times(self) -> TimeLaw:
        """Where the two scores are compared."""
        ...

    @property
    def fake_times(self) -> TimeLaw:
        """Where the fake score is trained."""
        ...

    @property
    def fake_space(self) -> RowName:
        """The row in which the fake score's errors are squared."""
        ...


@runtime_checkable
class AdversarialMatching(Matching, Protocol):
    """The same beside a GAN term."""

    @property
    def gan(self) -> GAN: ...


def compare(call: Call, settings: Matching, roles: Roles, batch: Batch, landing: Landing) -> Scores:
    """Both scores of a landing at times drawn above its own.

    `look` gives a direction; `through` keeps the graph from the landing through both networks.
    """
    scales = settings.guidance.drawn(batch.shared_rng)
    noised = renoised(roles, batch, landing.x, law=settings.times, s=landing.s)
    real = guided(call, roles.real_score, noised.x_t, noised.t, batch.cond, w=scales.real)
    fake = guided(call, roles.fake_score, noised.x_t, noised.t, batch.cond, told(roles, landing), w=scales.fake)
    return Scores(noised, real, fake)


def fake_terms(settings: AdversarialMatching, roles: Roles, batch: Batch, landing: Landing) -> Terms:
    """What the fake score learns from a detached landing, and the discriminator with it."""
    terms = {"denoise": fake_denoising(settings, roles, batch, landing)}
    return terms | discriminator_losses(settings.gan, roles, batch, landing) if settings.gan.weight else terms


def fake_denoising(settings: Matching, roles: Roles, batch: Batch, landing: Landing) -> Tensor:
    """Denoising loss of the fake score on a detached landing, under the guidance it is to be used with."""
    scales = settings.guidance.drawn(batch.shared_rng)
    dropout = settings.guidance.dropout if settings.guidance.null else 0.0
    noised, cond = renoised(roles, batch, landing.x, law=settings.fake_times, s=landing.s), batch.cond
    if dropout:
        cond = cond.dropped(torch.rand(batch.size, generator=batch.rng, device=batch.rng.device) < dropout)
    known = told(roles, landing)
    prediction = guided(through, roles.fake_score, noised.x_t, noised.t, cond, known, w=scales.learned)
    return denoising_loss(prediction, noised, space=settings.fake_space)


def told(roles: Roles, landing: Landing) -> Scalars:
    """What the fake score is told of a landing if it has embeddings: the times of the last call and of the sample."""
    known = {"called": landing.t, "landed": landing.s}
    return {name: known[name] for name in roles.fake_score.scalars}


def cycle_of(ratio: int, gan: GAN = NO_GAN) -> tuple[Turn, ...]:
    """A generator turn, then `ratio` fake turns, with the discriminator where there is one."""
    turn = ("fake_score", "discriminator") if gan.weight else ("fake_score",)
    return (("generator",), *ratio * (turn,))


def reads(*, guidance: GuidanceLaw, rollout: RolloutName = "one_step", gan: GAN = NO_GAN) -> frozenset[str]:
    """`needs` of an objective that compares scores under these settings."""
    wanted = {
        "real_score": True,
        "images": gan.weight or rollout == "noised_data",
        "null": guidance.null,
        "one_step": rollout == "one_step",
        "second_derivative": gan.weight and gan.r1,
        "ode": rollout in ("trajectory", "phased"),
    }
    return frozenset(name for name, needed in wanted.items() if needed) | starts(gan)
