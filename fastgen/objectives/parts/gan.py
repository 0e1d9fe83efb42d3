"""The GAN term that brings real samples in, renoised (DMD2, arXiv:2405.14867, section 4.3) or decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.nn.functional import relu, softplus

from ...models.conditioning import Conditioning
from ...models.discriminator import FeatureDiscriminator
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Time, Uniform, joined
from ...unread import names_of, refuse_unread
from .base import Batch, Landing, Terms, shorthand
from .needs import Needs
from .ops import Noised, renoised
from .originals import DATA, AnyDiscriminator, Originals
from .slopes import gradient_penalty, moved, slope_of_heads

GanKind = Literal["logistic", "hinge", "relativistic"]


@dataclass(frozen=True)
class GAN:
    """Weights, loss and regularisers of an adversarial term.

    Args:
        weight: weight of the generator's term; 0 trains without discriminator and without images.
        start: images of the generator before its term begins; the discriminator learns from the first.
        learned: weight of the discriminator's loss beside the fake score's.
        kind: logistic is non-saturating, and the only one whose optimal logit is log p_real / p_fake.
        times: where the discriminator looks.
        joint: it looks where the scores do in place of `times`: the generator is judged at the noisy samples that the
            scores are compared on, the discriminator is taught at those that the fake score is taught on.
        one_pass: the discriminator reads the very call that teaches the fake score, in place of a further one on the
            same samples.
        paired: real and generated samples share their times and noises, or their "times" alone.
        even: the generator's term has the mean weight of the batch's samples, not each sample's own.
        pixels: clean samples are judged, decoded, by what a vision model sees of them (`discriminator.network`), in
            place of renoised ones by what a denoiser does.
        r1: gamma of gamma / 2 |grad D|^2 at real samples (Mescheder et al. 2018, arXiv:1801.04406).
        approximate_r1: weight of (D(x_t) - D(x_t + spread n))^2 at real samples (APT, arXiv:2501.08316), which needs
            no second derivative; for small spreads that is r1 = 2 spread^2 approximate_r1.
        spread: standard deviation of the perturbation n of both.
        approximate_r2: as approximate_r1, at generated samples.
        feature_r1: gamma of gamma / 2 sum_k |grad D_k|^2 by what each head reads of real samples, mean over the batch
            (ADD, arXiv:2311.17042, eq. 3, whose gamma is half of this one); the network that is read needs no second
            derivative.
    """

    weight: float = 3e-3
    start: int = 0
    learned: float = 1e-2
    kind: GanKind = "logistic"
    times: AnyTimeLaw = Uniform()
    joint: bool = False
    one_pass: bool = False
    paired: bool | Literal["times"] = False
    even: bool = False
    pixels: bool = False
    r1: float = 0.0
    approximate_r1: float = 0.0
    approximate_r2: float = 0.0
    spread: float = 0.01
    feature_r1: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "start", "r1", "approximate_r1", "approximate_r2", "feature_r1"):
            if (value := vars(self)[name]) < 0:
                raise ValueError(f"gan.{name} is {value:g}: need at least 0")
        if not self.weight:
            why, remedy = "gan.weight is 0", "set a weight above 0, or gan=0"
            refuse_unread(self, *names_of(self, "weight"), why=why, remedy=remedy, within="gan.")
        if self.spread <= 0 or self.learned <= 0:
            raise ValueError(
                f"gan.learned is {self.learned:g} and gan.spread {self.spread:g}: need both above 0, or nothing "
                "teaches the discriminator"
            )
        if not (self.approximate_r1 or self.approximate_r2):
            why, remedy = "gan.approximate_r1 and approximate_r2 are 0", "set one of them"
            refuse_unread(self, "spread", why=why, remedy=remedy, within="gan.")
        if self.joint:
            refuse_unread(self, "times", why="gan.joint is true", remedy="set gan.joint=false", within="gan.")
            check_shared(self, "gan.joint is true")
        if self.pixels:
            why, remedy = "gan.pixels is true and judges samples without noise", "set gan.pixels=false"
            refuse_unread(self, "times", "joint", "paired", why=why, remedy=remedy, within="gan.")
        if self.pixels and self.r1:
            raise ValueError(
                "gan.r1 would differentiate an autoencoder and a vision model twice: under gan.pixels set "
                "gan.feature_r1, which differentiates the heads alone"
            )
        if self.one_pass and not self.joint:
            raise ValueError(
                "gan.one_pass reads the call that teaches the fake score: set gan.joint=true, or leave it out"
            )


NO_GAN = GAN(0.0)


def check_gives_ratio(gan: GAN) -> None:
    """Raises ValueError for a GAN whose discriminator gives no density ratio of noisy samples."""
    check_renoises(gan)
    if gan.kind != "logistic" or not gan.weight:
        raise ValueError(
            f"gan.kind is {gan.kind} and gan.weight {gan.weight:g}: the density ratio comes from a logistic "
            "discriminator, set gan.kind=logistic and a weight above 0"
        )


def check_apart(gan: GAN) -> None:
    """Raises ValueError for a GAN that wants what two scores give where none are compared: places and weights."""
    if gan.joint:
        raise ValueError("gan.joint looks where two scores are compared, and here are none: set gan.times")
    check_unweighed(gan)


def check_unweighed(gan: GAN) -> None:
    """Raises ValueError for a GAN that evens weights out where the samples of its term have none, or all the same."""
    why = "no sample of this objective's adversarial term has a weight of its own"
    remedy = "choose an objective that weighs it by score matching's weight, such as sida"
    refuse_unread(gan, "even", why=why, remedy=remedy, within="gan.")


def check_shared(gan: GAN, why: str) -> None:
    """Raises ValueError for a GAN that shares times in pairs where samples share them anyway, for the reason given."""
    if gan.paired == "times":
        why, remedy = f"{why} and shares the times already", "set gan.paired=true for noises as well"
        refuse_unread(gan, "paired", why=why, remedy=remedy, within="gan.")


def check_renoises(gan: GAN) -> None:
    """Raises ValueError for a GAN that judges clean samples where noisy ones are to be judged."""
    if gan.pixels:
        raise ValueError("gan.pixels judges clean samples, and here noisy ones are compared: leave it out")


def acts(gan: GAN, batch: Batch) -> bool:
    """Whether the generator is judged yet."""
    return gan.weight > 0 and batch.images >= gan.start


def needs_gan(gan: GAN) -> Needs:
    """What the term asks for beside real samples."""
    if not gan.weight:
        return Needs()
    own = Needs(judged_from=gan.start, pixels=gan.pixels)
    return own | Needs(second_derivative=gan.r1 > 0, head_derivative=gan.feature_r1 > 0)


def generator_terms(
    gan: GAN,
    roles: Roles,
    batch: Batch,
    landing: Landing,
    compared: Noised | None = None,
    *,
    weight: Tensor | None = None,
    originals: Originals = DATA,
) -> Terms:
    """The generator's adversarial term, if there is one yet.

    `compared` are the noisy samples that the scores are compared on, `weight` [B, 1, ...] is each sample's own, 1 where
    not given.
    """
    if not acts(gan, batch):
        return {}
    loss = generator_loss(gan, roles, batch, landing, compared, originals)
    if weight is not None:
        weights = weight.to(loss).flatten()
        loss = (weights.mean() if gan.even else weights) * loss
    return {"gan": gan.weight * loss.mean()}


def generator_loss(
    gan: GAN, roles: Roles, batch: Batch, landing: Landing, compared: Noised | None = None, originals: Originals = DATA
) -> Tensor:
    """What the generator pays to be taken for real, [B]."""
    discriminator = originals.discriminator(roles, batch, landing)
    noised = _looked_at(gan, roles, batch, landing, compared)
    logits: Tensor = discriminator(noised.x_t, noised.t, batch.cond)
    if gan.kind == "hinge":
        return -logits.mean(dim=1)
    if gan.kind == "relativistic":
        real = _real(gan, roles, batch, noised, landing, originals)
        logits = logits - discriminator(real.x_t, real.t, batch.cond)
    return softplus(-logits).mean(dim=1)


def discriminator_losses(
    gan: GAN,
    roles: Roles,
    batch: Batch,
    landing: Landing,
    taught: Noised | None = None,
    *,
    judged: Tensor | None = None,
    originals: Originals = DATA,
) -> Terms:
    """The discriminator's loss on real and generated samples, and its regularisers.

    `taught` are the noisy samples that the fake score is taught on; `judged` their logits [B, k], where they are known.
    Otherwise real and generated samples are judged in one call.
    """
    discriminator = originals.discriminator(roles, batch, landing)
    fake = _looked_at(gan, roles, batch, landing, taught)
    real = _real(gan, roles, batch, fake, landing, originals)
    if judged is None:
        both = Conditioning.cat([batch.cond, batch.cond])
        logits, read = _read(gan, discriminator, torch.cat([real.x_t, fake.x_t]), joined([real.t, fake.t]), both)
        of_real, judged = logits.chunk(2)
    else:
        of_real, read = _read(gan, discriminator, real.x_t, real.t, batch.cond)
    terms = {"gan": gan.learned * LOSSES[gan.kind](of_real, judged)}
    if gan.r1:
        terms["r1"] = gan.learned * gan.r1 / 2 * gradient_penalty(discriminator, batch, real)
    if gan.approximate_r1:
        slope = gan.learned * gan.approximate_r1 * moved(discriminator, batch, real, of_real, spread=gan.spread)
        terms["r1"] = terms.get("r1", 0) + slope
    if gan.approximate_r2:
        terms["r2"] = gan.learned * gan.approximate_r2 * moved(discriminator, batch, fake, judged, spread=gan.spread)
    if gan.feature_r1:
        terms["feature_r1"] = gan.learned * gan.feature_r1 / 2 * slope_of_heads(of_real, read)
    return terms


def logistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of logits [B, k], large for real samples; its optimum is log p_real / p_fake (arXiv:1406.2661)."""
    return softplus(-real).mean() + softplus(fake).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss of the geometric GAN (Lim & Ye 2017, arXiv:1705.02894)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def relativistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of real - fake; a constant in the logits is free (Jolicoeur-Martineau 2018, arXiv:1807.00734)."""
    return softplus(fake - real).mean()


LOSSES: dict[GanKind, Callable[[Tensor, Tensor], Tensor]] = {
    "logistic": logistic_loss,
    "hinge": hinge_loss,
    "relativistic": relativistic_loss,
}


def _looked_at(gan: GAN, roles: Roles, batch: Batch, landing: Landing, scored: Noised | None) -> Noised:
    """The noisy samples that are judged: those of the scores, or the landing at times of its own."""
    if gan.pixels:
        return _clean(roles, batch, landing.x0)
    if not gan.joint:
        return renoised(roles, batch, landing.x, law=gan.times, s=landing.s)
    assert scored is not None, "check_apart refuses joint where no scores are compared"
    return scored


def _real(gan: GAN, roles: Roles, batch: Batch, fake: Noised, landing: Landing, originals: Originals) -> Noised:
    """The real samples; in pairs at the times, and maybe with the noises, of the generated ones.

    At their times also where those cannot lie everywhere, so that the time does not tell them apart.
    """
    x, s = originals.rows(roles, batch, landing)
    if gan.pixels:
        return _clean(roles, batch, x)
    if gan.paired is True:
        return Noised.of(roles.process, x, fake.t, fake.eps, s=s)
    if gan.paired or gan.joint or landing.s is not None:
        return Noised.of(roles.process, x, fake.t, batch.noise(), s=s)
    return renoised(roles, batch, x, law=gan.times, s=s)


def _clean(roles: Roles, batch: Batch, x0: Latent) -> Noised:
    """Samples as they are, at time 0."""
    return Noised.of(roles.process, x0, batch.full(0.0), torch.zeros_like(x0))


def _read(
    gan: GAN, discriminator: AnyDiscriminator, x_t: Latent, t: Time, cond: Conditioning
) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what the heads read, where their slopes by it are wanted."""
    if not gan.feature_r1:
        return discriminator(x_t, t, cond), []
    heads = cast(FeatureDiscriminator, discriminator)
    read = [feature.requires_grad_() for feature in heads.features(x_t, t, cond)]
    return heads.judged(read, cond), read


AnyGAN = Annotated[GAN, BeforeValidator(lambda raw: shorthand(raw, GAN))]
"""A GAN term as a config names it; a number is its weight."""
