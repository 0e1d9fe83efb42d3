"""SCFlow: a consistency model of a straight flow that corrects itself (Dao et al. 2024, arXiv:2412.16906).

Four parts, with the weights of the published training of text to image:

- Consistency distillation: the clean sample that the student predicts at t is held to what the target predicts at a
  neighbour r below, up to `reach` away, on the teacher's step. Where r lies below `truncated` it is held to the real
  sample itself.
- `back`: it is also held to what the target predicts at a neighbour above, on the same step.
- `straight`, the correction: on the line from a noise to what the student makes of it in one step, the student is to
  predict that very sample at every time.
- An adversary of the samples that it makes in one step.

The first two agree on any teacher, up to the error of a step. The third asks for straight trajectories, and so for a
teacher that has them: the authors' is a reflowed one (`reflow`), on which all are zero at once. On another teacher it
bends the student away from the teacher's own samples as far as its weight goes. Squared errors to the real sample below
`truncated` teach the mean of what x_r may come from, which is narrower than the data by what noise r hides.

Where code and paper differ in words, this follows the code: its consistency "in both directions" compares only clean
samples. The code waits 500 updates, of 20 images each, before two of the parts: for `back` this is left out, for the
adversary it is `gan.start`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import Scalars, look, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Prediction, Time, Uniform, pad_like
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Landing, Terms
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import check_decay, edges_of, follow, noised, origin, same_masks, target_of
from ..parts.gan import GAN, AnyGAN, check_apart, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.ops import drawn_times
from ..parts.solvers import AnyScale, Guidance


@dataclass(frozen=True)
class SelfCorrectedFlow:
    """SCFlow; the student steps deterministically.

    Args:
        teacher_guidance: guidance of the teacher.
        times: where the parts but the adversary look.
        reach: farthest that a neighbour lies from t, below or above; evenly drawn.
        truncated: time below which the lower neighbour's clean sample is the real one.
        back: weight of the neighbour above.
        straight: weight of the correction.
        ema: decay of the target; 0 for LoRA, where the generator is its own target.
        distance: between the clean samples of neighbours.
        huber: c of the Huber distances.
        gan: the adversary of samples in one step; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance(1.5, 1.5)
    times: AnyTimeLaw = Uniform()
    reach: float = 0.1
    truncated: float = 0.1
    back: float = 0.1
    straight: float = 0.1
    ema: float = 0.9
    distance: DistanceName = "huber"
    huber: float = 0.01
    gan: AnyGAN = GAN(weight=0.1, learned=1.0, paired=True)

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_apart(self.gan)
        check_huber(self)
        if not 0 < self.reach <= 1 or not 0 <= self.truncated < 1:
            raise ValueError(
                f"reach is {self.reach:g} and truncated {self.truncated:g}: spans of time, need 0 < reach <= 1 and "
                "0 <= truncated < 1"
            )
        if min(self.back, self.straight) < 0:
            raise ValueError(f"back is {self.back:g} and straight {self.straight:g}: weights, need at least 0")

    @property
    def cycle(self) -> Cycle:
        return (*ONE_TURN, ("discriminator",)) if self.gan.weight else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, sampler="ode")
        return own | self.teacher_guidance.needs(target=self.ema > 0) | needs_gan(self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        lowest = batch.full(origin(roles.process))
        t = drawn_times(roles, batch, law=self.times, s=lowest)
        start, field = noised(roles, batch, t), self.teacher_guidance.field(roles, batch)
        scalars, step = self.teacher_guidance.scalars(batch, field), field(start.x_t, t)
        r = t - uniform(batch.rng, batch.size) * (t - lowest).clamp(max=self.reach)
        q = t + uniform(batch.rng, batch.size) * (1 - t).clamp(max=self.reach)
        below, above = (self._seen(roles, batch, step.at(s), s, scalars) for s in (r, q))
        below = torch.where(pad_like(r < self.truncated, below), batch.x0, below)
        x0 = through(roles.generator, start.x_t, t, batch.cond, scalars).x0
        jump = jumped(roles, batch, start.eps, scalars)
        apart = DISTANCES[self.distance]
        terms = {
            "consistency": apart(x0 - below, self.huber).mean(),
            "back": self.back * apart(x0 - above, self.huber).mean(),
            "straight": self.straight * bend(roles, batch, jump, t, scalars),
        }
        return terms | generator_terms(self.gan, roles, batch, judged(jump))

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        scalars = self.teacher_guidance.scalars(batch, self.teacher_guidance.field(roles, batch))
        with torch.no_grad():
            jump = jumped(roles, batch, batch.noise(), scalars)
        return discriminator_losses(self.gan, roles, batch, judged(jump))

    def _seen(self, roles: Roles, batch: Batch, x_s: Latent, s: Time, scalars: Scalars) -> Latent:
        """The target's clean sample, under the dropout masks that the student draws next."""
        with same_masks(x_s):
            return look(target_of(roles, self.ema), x_s, s, batch.cond, scalars).x0


def jumped(roles: Roles, batch: Batch, eps: Latent, scalars: Scalars) -> Prediction:
    """What the student makes of a noise in one step."""
    first = batch.full(edges_of(roles, batch)[0])
    return through(roles.generator, roles.process.prior(eps, first), first, batch.cond, scalars)


def bend(roles: Roles, batch: Batch, jump: Prediction, t: Time, scalars: Scalars) -> Tensor:
    """Mean square of what the student sees at t on the line of its own jump beside where that leads; both constants."""
    again = through(roles.generator, jump.at(t).detach(), t, batch.cond, scalars).x0
    return (again - jump.x0.detach()).square().mean()


def judged(jump: Prediction) -> Landing:
    """One step as what an adversary judges."""
    return Landing(jump.x0, None, jump.t, jump.x0)
