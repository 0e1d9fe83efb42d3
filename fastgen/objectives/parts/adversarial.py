"""Adversarial consistency: the generator's jump against the target's, not against data (PCM, arXiv:2405.18407)."""

from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import relu, softplus

from ...models.roles import Roles
from ...process import Latent, Time
from .base import Batch, Terms, Turn
from .distances import DISTANCES, DistanceName
from .flow_map import Jumps
from .gan import GAN, LOSSES, acts, check_apart
from .ops import Noised, renoised


@runtime_checkable
class Adversarial(Protocol):
    """The settings of a consistency objective with an adversary."""

    @property
    def distance(self) -> DistanceName: ...

    @property
    def huber(self) -> float: ...

    @property
    def gan(self) -> GAN: ...


def check_adversarial(settings: Adversarial) -> None:
    """Raises ValueError for settings that adversarial consistency does not read."""
    gan = settings.gan
    check_apart(gan)
    if gan.kind == "relativistic" or gan.r1 or gan.approximate_r1:
        raise ValueError(
            "adversarial consistency has hinge or logistic losses without r1: set gan.kind=hinge, gan.r1=0"
        )


def turns(settings: Adversarial) -> tuple[Turn, ...]:
    """The discriminator's turn, if there is one, and the generator's."""
    return (("discriminator",), ("generator",)) if settings.gan.weight else (("generator",),)


def consistency_terms(settings: Adversarial, roles: Roles, batch: Batch, jumps: Jumps, *, until: Time) -> Terms:
    """The distance of the jumps and the adversary's opinion, which looks at times up to `until` [B]."""
    terms = {"consistency": DISTANCES[settings.distance](jumps.gap, settings.huber).mean()}
    if acts(settings.gan, batch):
        terms["gan"] = settings.gan.weight * generator_loss(settings.gan, roles, batch, jumps, until=until)
    return terms


def generator_loss(gan: GAN, roles: Roles, batch: Batch, jumps: Jumps, *, until: Time) -> Tensor:
    """What the generator pays to be taken for the target, mean over the batch.

    Its hinge is that of the published discriminators, max(0, 1 - D): a sample that is taken for its target with a
    margin pays nothing more, where the usual -D goes on pulling.
    """
    noised = _carried(gan, roles, batch, jumps.generated, jumps.s, until)
    logits: Tensor = roles.discriminator(noised.x_t, noised.t, batch.cond)
    return relu(1 - logits).mean() if gan.kind == "hinge" else softplus(-logits).mean()


def discriminator_loss(gan: GAN, roles: Roles, batch: Batch, jumps: Jumps, *, until: Time) -> Terms:
    """The discriminator's loss on targets and generated samples, at the same times, with noises of their own."""
    real = _carried(gan, roles, batch, jumps.target.detach(), jumps.s, until)
    fake = Noised.of(roles.process, jumps.generated.detach(), real.t, batch.noise(), s=jumps.s)
    logits = [roles.discriminator(x.x_t, x.t, batch.cond) for x in (real, fake)]
    return {"gan": gan.learned * LOSSES[gan.kind](*logits)}


def above(s: Time, width: float) -> Time:
    """Times that far above s, at most 1."""
    return (s + width).clamp(max=1)


def _carried(gan: GAN, roles: Roles, batch: Batch, x: Latent, s: Time, until: Time) -> Noised:
    """x at times s, carried by the forward process to times of (s, until]."""
    return renoised(roles, batch, x, law=gan.times, s=s, until=until)
