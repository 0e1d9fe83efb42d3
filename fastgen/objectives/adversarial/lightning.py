"""Progressive adversarial distillation (Lin et al. 2024, arXiv:2402.13929), of SDXL-Lightning.

Training goes in rounds, as in `progressive`: one step of the student covers several steps of its teacher, which is the
student of the round before. But the end of the student's step is not regressed, since a regression blurs what the
student cannot follow; an adversary tells it from the end of the teacher's steps. In the first stage of a round the
adversary also reads where the step began (section 4.1), which keeps the student to the teacher's trajectories and
modes. In the second it reads the end alone (section 4.3), so that the student may leave trajectories that it has no
capacity for. The first round, whose teacher is guided, is one of `progressive`.

The adversary sees the ends renoised, as everywhere in this family; the paper does so in the rounds of one and two
steps. From a given start the teacher has one end: without noise a discriminator could tell any other sample from it
with certainty, and would not say how near it is. At the noisiest time the step begins at pure noise (section 4.4).
"""

from dataclasses import dataclass
from typing import Literal, final

import torch

from ...models.calls import through
from ...models.roles import Roles
from ...process import Time, pad_like
from ..parts.base import Batch, Cycle, Landing, Terms
from ..parts.flow_map import divided, drawn_step, edges_of
from ..parts.gan import (
    GAN,
    AnyGAN,
    check_apart,
    check_renoises,
    check_shared,
    discriminator_losses,
    generator_terms,
    needs_gan,
)
from ..parts.matching import check_ratio
from ..parts.needs import Needs
from ..parts.originals import Jump, Originals, TimedSamples
from ..parts.solvers import AnyScale, Guidance, ddim


@final
@dataclass(frozen=True)
class Lightning:
    """One stage of a round; the student steps deterministically.

    The paper's discriminator is a copy of the teacher's network that learns, `discriminator.backbone: own`.

    Args:
        judged: what the adversary reads of a step: the whole "jump", or its "end" alone.
        divided: into how many steps this round divides each of the exported student's: 1 in the last round.
        substeps: solver steps of the teacher in one step of the student.
        teacher_guidance: guidance of the teacher of this round.
        gan: the adversarial term; its times lie above that of the end.
        ratio: updates of the discriminator per update of the generator.

    Raises:
        ValueError: settings that mean nothing here, or a discriminator that never acts or learns.
    """

    judged: Literal["jump", "end"] = "jump"
    divided: int = 1
    substeps: int = 2
    teacher_guidance: AnyScale = Guidance()
    gan: AnyGAN = GAN(weight=1.0, learned=1.0)
    ratio: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio, "discriminator")
        check_apart(self.gan)
        check_renoises(self.gan)
        check_shared(self.gan, "the adversary compares two ends of one step")
        if not self.gan.weight or self.gan.start:
            raise ValueError(
                f"gan.weight is {self.gan.weight:g} and gan.start {self.gan.start}: the adversary alone trains the "
                "generator here, need above 0 and 0"
            )
        if self.divided < 1 or self.substeps < 2:
            raise ValueError(
                f"divided is {self.divided} and substeps {self.substeps}: need at least 1 and 2, a round is "
                "several teacher steps in one of the student's"
            )
        if self.teacher_guidance.told:
            raise ValueError("teacher_guidance.told is true, which the discriminator is not: set it to false")

    @property
    def cycle(self) -> Cycle:
        return (("generator",), *self.ratio * (("discriminator",),))

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, sampler="ode") | self.teacher_guidance.needs()
        return own | needs_gan(self.gan) | self.originals.needs

    @property
    def originals(self) -> Originals:
        """Where the teacher's steps end."""
        return Originals(self._led, Needs(jumps=self.judged == "jump"))

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        return generator_terms(self.gan, roles, batch, self._jump(roles, batch), originals=self.originals)

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        with torch.no_grad():
            jump = self._jump(roles, batch)
        return discriminator_losses(self.gan, roles, batch, jump, originals=self.originals)

    def _jump(self, roles: Roles, batch: Batch) -> Jump:
        """A step of the student on the round's grid, from noised real samples, or from pure noise at its first time."""
        edges = edges_of(roles, batch)
        t, s = drawn_step(divided(edges, self.divided * (len(edges) - 1)), batch)
        eps = batch.noise()
        noised, pure = roles.process.renoise(batch.x0, t, eps), roles.process.prior(eps, t)
        x_t = torch.where(pad_like(t >= batch.full(edges[0]), eps), pure, noised)
        belief = through(roles.generator, x_t, t, batch.cond)
        return Jump(belief.at(s), s, t, belief.x0, x_t)

    def _led(self, roles: Roles, batch: Batch, landing: Landing) -> TimedSamples:
        """Where the teacher's steps from the same start end."""
        assert isinstance(landing, Jump), "the student's step"
        s: Time = landing.landed
        field = self.teacher_guidance.field(roles, batch)
        return TimedSamples(ddim(field, landing.start, landing.t, s, substeps=self.substeps), s)
