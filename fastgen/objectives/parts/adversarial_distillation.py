"""The family of adversarial distillation: a generator, a discriminator, and no fake score.

The class is abstract and a paper is final: it has settings and defaults of its own, writes what is abstract and may
say `check` and `beside`; nothing else is overridden.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from ...models.roles import Roles
from .base import Batch, Cycle, Landing, Terms
from .gan import GAN, AnyGAN, check_apart, discriminator_losses, generator_terms, needs_gan
from .matching import check_ratio
from .needs import Needs
from .rollout import land, landing_of

Real = Literal["images", "teacher"]
CleanRollout = Literal["one_step", "backward_simulation", "noised_data"]


@dataclass(frozen=True)
class AdversarialDistillation(ABC):
    """Generated samples are to be taken for real ones.

    Args:
        gan: the adversarial term.
        real: what samples are to be taken for: images of the data, or the teacher's own samples, which are made before
            training (`pairs`) and ask for prompts or labels alone.
        rollout: how samples are generated; `noised_data` starts from the real ones.
        ratio: updates of the discriminator per update of the generator.

    Raises:
        ValueError: settings that do not fit the paper, or a discriminator that never acts or learns.
    """

    gan: AnyGAN = GAN(weight=1.0, learned=1.0)
    real: Real = "images"
    ratio: int = 1

    @property
    @abstractmethod
    def rollout(self) -> CleanRollout:
        """A setting of most papers."""

    @property
    @abstractmethod
    def also(self) -> Needs:
        """What the paper needs beside real samples and its adversary."""

    def check(self) -> None:  # noqa: B027 - most papers have nothing to say here
        """Raises ValueError for settings that do not fit the paper."""

    def beside(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """What the paper's generator pays beside its adversary."""
        return {}

    @final
    def __post_init__(self) -> None:
        check_ratio(self.ratio, "discriminator")
        check_apart(self.gan)
        if not self.gan.weight:
            raise ValueError("gan.weight is 0: the adversary trains the generator here, set it above 0")
        if self.gan.start:
            raise ValueError(f"gan.start is {self.gan.start}: the adversary trains the generator here, leave it out")
        self.check()

    @property
    @final
    def cycle(self) -> Cycle:
        """A generator turn, then the discriminator's."""
        return (("generator",), *self.ratio * (("discriminator",),))

    @property
    @final
    def needs(self) -> Needs:
        """The needs of the settings, and the paper's own."""
        images = self.real == "images"
        own = Needs(images=images, pairs=not images, one_step=self.rollout == "one_step")
        return own | needs_gan(self.gan) | self.also

    @final
    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The adversary's opinion of the samples, and what the paper has beside it."""
        self._shown(batch)
        landing = land(self.rollout, roles, batch)
        return generator_terms(self.gan, roles, batch, landing) | self.beside(roles, batch, landing)

    @final
    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        """Real samples told from generated ones."""
        self._shown(batch)
        return discriminator_losses(self.gan, roles, batch, landing_of(self.rollout, roles, batch))

    def _shown(self, batch: Batch) -> None:
        """Makes the batch's real samples the teacher's, where those are the real ones."""
        if self.real == "teacher":
            batch.real = batch.pair.x0
