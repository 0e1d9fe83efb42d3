"""Adversarial consistency: the generator's jump against the target's, not against data (PCM, arXiv:2405.18407)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ...models.roles import Roles
from ...process import Latent, Time
from ...unread import refuse_unread
from .base import ONE_TURN, Batch, Cycle, Terms
from .distances import DISTANCES, DistanceName, check_huber
from .flow_map import Interval, Jumps, cells, drawn_cell, follow, jumps, noised, segment_end
from .gan import GAN, LOSSES, AnyGAN, acts, check_apart, check_renoises, needs_gan
from .needs import Needs
from .ops import Noised, renoised
from .solvers import SOLVERS, AnyScale, Guidance, SolverName


class ComparedJumps(NamedTuple):
    """Where two jumps that have to agree end, and up to which times [B] the adversary compares them."""

    ends: Jumps
    until: Time


@dataclass(frozen=True)
class AdversarialConsistency(ABC):
    """Jumps that agree, and an adversary that cannot tell them apart. A paper is final and writes what is abstract.

    Args:
        teacher_guidance: guidance of the teacher.
        grid: solver steps from noise to data, rounded up to a whole number in each of the student's steps.
        solver: solver of these steps.
        distance: between the two jumps.
        huber: c of the Huber distances.
        gan: the adversarial term; 0 for none.
        ema: decay of the target; 0 makes the generator its own target.

    Raises:
        ValueError: settings that do not fit the paper, or that adversarial consistency does not read.
    """

    teacher_guidance: AnyScale = Guidance()
    grid: int = 50
    solver: SolverName = "ddim"
    distance: DistanceName = "huber"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.1, learned=1.0, kind="hinge")

    @property
    @abstractmethod
    def ema(self) -> float:
        """A setting of some papers."""

    @property
    @abstractmethod
    def also(self) -> Needs:
        """What the paper needs beside images, a guided teacher, a target and an adversary."""

    @abstractmethod
    def compared(self, roles: Roles, batch: Batch) -> ComparedJumps:
        """The paper's jumps."""

    def check(self) -> None:  # noqa: B027 - most papers have nothing to say here
        """Raises ValueError for settings that do not fit the paper."""

    @final
    def __post_init__(self) -> None:
        check_apart(self.gan)
        check_renoises(self.gan)
        check_huber(self)
        if self.gan.kind == "relativistic":
            raise ValueError(
                "gan.kind is relativistic, but adversarial consistency has hinge or logistic losses: set one"
            )
        why, remedy = "adversarial consistency has no such term", "choose dmd2 or another that has real samples"
        steady = ("r1", "approximate_r1", "approximate_r2", "feature_r1")
        refuse_unread(self.gan, *steady, why=why, remedy=remedy, within="gan.")
        why, remedy = "the two jumps share their times and have noises of their own", "set gan.paired=false"
        refuse_unread(self.gan, "paired", why=why, remedy=remedy, within="gan.")
        self.check()

    @final
    def within(self, roles: Roles, batch: Batch, edges: Tensor) -> ComparedJumps:
        """Jumps from any time to the lower end of its segment between edges [n + 1]; judged up to one segment above."""
        t, r = drawn_cell(cells(edges, self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval = Interval(t, r, segment_end(edges, r, roles.process))
        scalars = self.teacher_guidance.scalars(batch, field)
        ends = jumps(roles, batch, interval, x_t, x_r, ema=self.ema, scalars=scalars)
        return ComparedJumps(ends, above(ends.s, 1 / (len(edges) - 1)))

    @property
    @final
    def cycle(self) -> Cycle:
        """The discriminator's turn, if there is one, and the generator's."""
        return (("discriminator",), *ONE_TURN) if self.gan.weight else ONE_TURN

    @property
    @final
    def needs(self) -> Needs:
        """The needs of the settings, and the paper's own."""
        own = Needs(images=True, real_score=True) | self.teacher_guidance.needs(target=self.ema > 0)
        return own | needs_gan(self.gan) | self.also

    @final
    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The distance of the jumps, and the adversary's opinion."""
        follow(roles, batch, self.ema)
        ends, until = self.compared(roles, batch)
        terms = {"consistency": DISTANCES[self.distance](ends.gap, self.huber).mean()}
        if acts(self.gan, batch):
            terms["gan"] = self.gan.weight * generator_loss(self.gan, roles, batch, ends, until=until)
        return terms

    @final
    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        """Told targets from generated samples."""
        with torch.no_grad():
            ends, until = self.compared(roles, batch)
        return discriminator_loss(self.gan, roles, batch, ends, until=until)


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
