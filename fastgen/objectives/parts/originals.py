"""What generated samples are to be taken for: where an objective has its real rows from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor

from ...models.conditioning import Conditioning
from ...models.discriminator import Discriminator
from ...models.jump_discriminator import JumpDiscriminator
from ...models.roles import Roles
from ...process import Latent, Time
from .base import Batch, Landing
from .needs import Needs

AnyDiscriminator = Callable[[Latent, Time, Conditioning], Tensor]
"""(x_t, t, cond) -> logits [B, k], large for real samples: a `FeatureDiscriminator`, or on a bed the exact ratio."""


@dataclass(frozen=True)
class Jump(Landing):
    """A step of the student that began at `start` [B, ...], at times t [B]."""

    start: Latent


class TimedSamples(NamedTuple):
    """Samples x [B, ...] at times s [B], clean where that is None; constants."""

    x: Latent
    s: Time | None = None


@dataclass(frozen=True)
class Originals:
    """Where the rows come from that an adversary holds generated samples against.

    Args:
        rows: (roles, batch, landing) -> what that landing is to be taken for, row by row; asked only where it is read.
        needs: what they ask for.
    """

    rows: Callable[[Roles, Batch, Landing], TimedSamples]
    needs: Needs

    def discriminator(self, roles: Roles, batch: Batch, landing: Landing) -> AnyDiscriminator:
        """The role that tells generated samples from them; it reads where jumps began, too, where `needs` say so."""
        if not self.needs.jumps:
            return roles.discriminator
        assert isinstance(landing, Jump), "objectives that need jumps make them"
        return JumpDiscriminator(cast(Discriminator, roles.discriminator), landing.start, landing.t, batch.cond)


DATA = Originals(lambda _roles, batch, _landing: TimedSamples(batch.x0), Needs(images=True))
"""Real samples."""
