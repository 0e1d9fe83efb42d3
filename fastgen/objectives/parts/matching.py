"""Verbs of distribution matching: the two scores of a generated sample, and the training of the second."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ...errors import UserError
from ...models.calls import Scalars, Verb, guided, through
from ...models.discriminator import Discriminator
from ...models.roles import Roles
from ...process import Latent, Prediction, Time, TimeLaw
from ...seeds import uniform
from ...unread import refuse_unread
from .base import Batch, Cycle, Landing, Terms
from .gan import GAN, discriminator_losses, needs_gan
from .guidance_laws import GuidanceLaw, Scales
from .needs import Needs
from .ops import Noised, RowName, denoising_loss, renoised
from .originals import DATA, Originals
from .rollout import Rollout, RolloutName

FLOOR = 1e-5
"""Of a normaliser: where so little noise was added that real and x0 agree in fp32, it keeps 0 / 0 and rounding errors
out."""
MOST_UPDATES = 1000


@dataclass(frozen=True)
class Scores:
    """What the real and the fake score believe of the same renoised samples.

    `floor` bounds mean|x0 - real| from below where their difference is divided by it.
    """

    noised: Noised
    real: Prediction
    fake: Prediction
    floor: float = FLOOR

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
    """The settings by which a real and a fake score are compared and the second is taught."""

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

    @property
    def even(self) -> bool:
        """Whether they count the same wherever little of the noise in x_t is known."""
        ...

    @property
    def gan(self) -> GAN: ...

    @property
    def originals(self) -> Originals:
        """What the GAN term's discriminator tells generated samples from."""
        ...


def compare(
    call: Verb, settings: Matching, roles: Roles, batch: Batch, landing: Landing, *, floor: float = FLOOR
) -> Scores:
    """Both scores of a landing that is renoised to times drawn above its own.

    `look` gives a direction; `through` keeps the graph from the landing through both networks.
    """
    scales = settings.guidance.drawn(batch.shared_rng)
    noised = renoised(roles, batch, landing.x, law=settings.times, s=landing.s)
    return scored(call, scales, roles, batch, landing, noised, floor=floor)


def scored(
    call: Verb, scales: Scales, roles: Roles, batch: Batch, landing: Landing, noised: Noised, *, floor: float = FLOOR
) -> Scores:
    """Both scores, at these scales, of a landing that is noised already."""
    real = guided(call, roles.real_score, noised.x_t, noised.t, batch.taught, w=scales.real)
    fake = guided(call, roles.fake_score, noised.x_t, noised.t, batch.cond, scalars_of(roles, landing), w=scales.fake)
    return Scores(noised, real, fake, floor)


def fake_terms(settings: Matching, roles: Roles, batch: Batch, landing: Landing) -> Terms:
    """What the fake score learns from a detached landing, and the discriminator on the same noisy samples."""
    noised = renoised(roles, batch, landing.x, law=settings.fake_times, s=landing.s)
    gan, originals = settings.gan, settings.originals
    if not gan.weight:
        return {"denoise": fake_denoising(settings, roles, batch, landing, noised)}
    if not gan.one_pass:
        terms = {"denoise": fake_denoising(settings, roles, batch, landing, noised)}
        return terms | discriminator_losses(gan, roles, batch, landing, noised, originals=originals)
    judged, belief = _reader(roles).with_belief(noised.x_t, noised.t, batch.cond)
    terms = {"denoise": taught(settings, belief, noised)}
    return terms | discriminator_losses(gan, roles, batch, landing, noised, judged=judged, originals=originals)


def fake_denoising(settings: Matching, roles: Roles, batch: Batch, landing: Landing, noised: Noised) -> Tensor:
    """Denoising loss of the fake score on a noised landing, under the guidance it is to be used with."""
    scales = settings.guidance.drawn(batch.shared_rng)
    dropout = settings.guidance.dropout if settings.guidance.null else 0.0
    cond = batch.cond
    if dropout:
        cond = cond.dropped(uniform(batch.rng, batch.size) < dropout)
    scalars = scalars_of(roles, landing)
    belief = guided(through, roles.fake_score, noised.x_t, noised.t, cond, scalars, w=scales.learned)
    return taught(settings, belief, noised)


def taught(settings: Matching, belief: Prediction, noised: Noised) -> Tensor:
    """The error of what the fake score believes of a noised landing."""
    precision = torch.ones_like(noised.precision) if settings.even else noised.precision
    return denoising_loss(belief, replace(noised, precision=precision), space=settings.fake_space)


def scalars_of(roles: Roles, landing: Landing) -> Scalars:
    """What the fake score is told of a landing if it has embeddings: the times of the last call and of the sample."""
    known = {"called": landing.t, "landed": landing.landed}
    return {name: known[name] for name in roles.fake_score.scalars}


def check_floor(settings: Any) -> None:
    """Raises ValueError for a `floor` at which the normaliser may vanish, or where `weight` is not that normaliser."""
    if (floor := settings.floor) <= 0:
        raise ValueError(f"floor is {floor:g}: it keeps the direction finite where real and x0 agree, need floor > 0")
    if settings.weight != "l1":
        refuse_unread(settings, "floor", why=f"weight is {settings.weight}", remedy="set weight=l1")


def check_ratio(ratio: int, learner: str = "fake score") -> None:
    """Raises ValueError for a fake score or discriminator that never learns, or hardly lets the generator learn."""
    if not 1 <= ratio <= MOST_UPDATES:
        raise ValueError(
            f"ratio is {ratio}: the {learner} needs at least one update per generator update, or the generator chases "
            f"what never learns of it, and at most {MOST_UPDATES}"
        )


def check_one_pass(settings: Matching, needs: Needs) -> None:
    """Raises ValueError where one call cannot both teach the fake score and be judged."""
    learned, told = settings.guidance.drawn(torch.Generator()).learned, needs.scalars_of("fake_score")
    if learned != 1 or settings.guidance.dropout or told:
        raise ValueError(
            "gan.one_pass reads the call that teaches the fake score, which has to be plain, and here is guided, drops "
            f"conditions or is told more than its time (learned scale {learned:g}, dropout "
            f"{settings.guidance.dropout:g}, told {', '.join(told) or 'nothing'}): leave gan.one_pass out"
        )


def _reader(roles: Roles) -> Discriminator:
    """The discriminator.

    Raises:
        UserError: it does not read the fake score.
    """
    reader = cast(Discriminator, roles.discriminator)
    if reader.backbone is not roles.fake_score:
        raise UserError(
            "gan.one_pass reads the fake score, and the discriminator another network: set "
            "discriminator.backbone=fake_score, or leave gan.one_pass out"
        )
    return reader


def cycle_of(ratio: int, gan: GAN) -> Cycle:
    """A generator turn, then `ratio` fake turns, with the discriminator where there is one."""
    turn = ("fake_score", "discriminator") if gan.weight else ("fake_score",)
    return (("generator",), *ratio * (turn,))


def reads(*, guidance: GuidanceLaw, rollout: RolloutName | Rollout, gan: GAN, originals: Originals = DATA) -> Needs:
    """The needs of an objective that compares scores under these settings."""
    own = Needs(
        real_score=True,
        images=rollout == "noised_data",
        null=guidance.null,
        one_step=rollout == "one_step",
        sampler="ode" if rollout in ("trajectory", "phased") else None,
    )
    return own | needs_gan(gan) | (originals.needs if gan.weight else Needs())
