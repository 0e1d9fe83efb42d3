"""Adversarial consistency: the generator's jump against the target's, not against data (PCM, arXiv:2405.18407)."""

from torch import Tensor
from torch.nn.functional import softplus

from ..models.roles import Roles
from ..process import Latent, Time
from .base import Batch, Terms
from .flow_map import Jumps
from .gan import GAN, LOSSES
from .ops import Noised, renoised


def check_kind(gan: GAN) -> None:
    """Raises ValueError for settings that adversarial consistency does not read."""
    if gan.kind == "relativistic" or gan.r1 or gan.approximate_r1:
        raise ValueError(
            "adversarial consistency has hinge or logistic losses without r1: set gan.kind=hinge, gan.r1=0"
        )


def taken_for_target(gan: GAN, roles: Roles, batch: Batch, jumps: Jumps, *, until: Time) -> Tensor:
    """What the generator pays to be taken for the target, mean over the batch."""
    noised = _carried(gan, roles, batch, jumps.generated, jumps.s, until)
    logits: Tensor = roles.discriminator(noised.x_t, noised.t, batch.cond)
    return -logits.mean() if gan.kind == "hinge" else softplus(-logits).mean()


def told_apart(gan: GAN, roles: Roles, batch: Batch, jumps: Jumps, *, until: Time) -> Terms:
    """The discriminator's loss on targets and generated samples with noises of their own."""
    real = _carried(gan, roles, batch, jumps.target.detach(), jumps.s, until)
    fake = _carried(gan, roles, batch, jumps.generated.detach(), jumps.s, until)
    logits = [roles.discriminator(x.x_t, x.t, batch.cond) for x in (real, fake)]
    return {"gan": gan.learned * LOSSES[gan.kind](*logits)}


def _carried(gan: GAN, roles: Roles, batch: Batch, x: Latent, s: Time, until: Time) -> Noised:
    """x at times s, carried by the forward process to times of (s, until]."""
    return renoised(roles, batch, x, law=gan.times, s=s, until=until)
