"""The family of score matching: what its papers share, and the form that most of them have.

The classes here are abstract and a paper is final: it has settings and defaults of its own, writes what is abstract
(`matched`, or of `DirectionMatching` the direction) and may say `check`, `learned`, `originals`, `also`, `even`,
`weighs_gan` and `at`; nothing else is overridden.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Uniform
from .base import Batch, Cycle, Landing, Terms
from .gan import NO_GAN, AnyGAN, check_unweighed, generator_terms
from .guidance_laws import GuidanceLaw
from .matching import Matching, Scores, check_one_pass, check_ratio, compare, cycle_of, fake_terms, reads
from .needs import Needs
from .ops import RowName, surrogate
from .originals import DATA, Originals
from .rollout import Rollout, RolloutName, land, landing_of
from .stabilisers import NO_STABILISERS, Stabilisers
from .weights import WeightName


@dataclass(frozen=True)
class ScoreMatching(ABC):
    """Generated samples are compared by two scores: the teacher's, and one that learns them beside the generator.

    Args:
        weight: weight of the direction fake - real or of the integrand, one of `WEIGHTS`.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared; "edm" has EDM's weight.
        ratio: fake updates per generator update.
        stabilisers: what steadies the two scores, beside the paper's loss.
        guidance: guidance of the scores.
        rollout: how samples are generated.

    Raises:
        ValueError: settings that do not fit the paper, or a fake score that never learns.
    """

    weight: WeightName = "l1"
    gan: AnyGAN = NO_GAN
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 1
    stabilisers: Stabilisers = NO_STABILISERS

    @property
    @abstractmethod
    def guidance(self) -> GuidanceLaw:
        """The guidance of the scores, a setting of most papers."""

    @property
    @abstractmethod
    def rollout(self) -> RolloutName | Rollout:
        """How samples are generated, a setting of most papers; `also` has the `Needs` of a function."""

    @abstractmethod
    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """The paper's loss of what was generated, and the GAN term."""

    def check(self) -> None:  # noqa: B027 - most papers have nothing to say here
        """Raises ValueError for settings that do not fit the paper."""

    def learned(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """What the fake score learns of what was generated, and the discriminator with it."""
        return fake_terms(self.at(batch.images), roles, batch, landing)

    @property
    def originals(self) -> Originals:
        """What the GAN term's discriminator tells generated samples from; a paper hands its own to its terms."""
        return DATA

    @property
    def also(self) -> Needs:
        """What the paper needs beside two scores, its rollout and its GAN term."""
        return Needs()

    def at(self, images: int) -> Matching:
        """Its settings after so many images, where they change while it trains."""
        return self

    @property
    def even(self) -> bool:
        """Whether the fake score's errors count the same at all times, however little of x_t's noise is known."""
        return False

    @property
    def weighs_gan(self) -> bool:
        """Whether `weight` is that of the generator's GAN term too."""
        return False

    @final
    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.stabilisers.skip and self.needs.one_step:
            raise ValueError("stabilisers.skip leaves out the first of several steps, and here is one: set it to false")
        self.check()
        if not self.weighs_gan or self.weight == "none":
            check_unweighed(self.gan)
        if self.stabilisers.follow:
            self.stabilisers.check_followed(self.needs)
        if self.gan.one_pass:
            check_one_pass(self, self.needs)

    @property
    @final
    def cycle(self) -> Cycle:
        """A generator turn, then the fake turns."""
        return cycle_of(self.ratio, self.gan)

    @cached_property
    @final
    def needs(self) -> Needs:
        """The needs of the settings, and the paper's own."""
        own = reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan, originals=self.originals)
        return own | self.stabilisers.needs | self.also

    @final
    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The generator's turn: the paper's loss, and what steadies it."""
        landing = land(self.rollout, roles, batch, first=int(self.stabilisers.skip))
        return self.matched(roles, batch, landing) | self.stabilisers.of_generator(roles, batch)

    @final
    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        """The fake score's turn, and the discriminator's with it: what they learn from the batch's samples."""
        self.stabilisers.before_fake_score(roles, batch)
        landing = landing_of(self.rollout, roles, batch, first=int(self.stabilisers.skip))
        terms = self.learned(roles, batch, landing)
        return terms | self.stabilisers.of_fake_score(self.at(batch.images), roles, batch, landing)


class DirectionMatching(ScoreMatching):
    """The scores give a direction that generated samples are moved against; the paper writes only this direction."""

    @abstractmethod
    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        """The direction that generated samples x0 are moved against, [B, ...], without gradient."""

    @final
    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """The direction as a gradient, and the GAN term."""
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        matched = surrogate(landing.x0, self.direction(roles, batch, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)
