"""SCott: latent consistency along a stochastic trajectory, with an adversary (Liu et al. 2024, arXiv:2403.01505).

As LCM, but the teacher comes from t to its neighbour by several sub-steps that add noise, `eta` of what an ancestral
sampler adds, and real images judge the student's clean samples. With eta = 0, one sub-step and no adversary it is LCM.

Noise costs variety where errors are squared: a clean sample has to be what its neighbours' are on average over the
noise, which between Gaussians is narrower than the data by the product of the sub-steps' lost gains. The adversary has
to make up for it. No code is public; the paper's discriminator is a LoRA on the decoder of a diffusion network, here
heads on a network's features, and its weight of the times, its guidance and the eta it settled on are not known to us.
"""

from dataclasses import dataclass

import torch

from ...models.calls import through
from ...models.roles import Roles
from ..parts.base import ONE_TURN, Batch, Cycle, Landing, Terms
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import Interval, cells, check_decay, drawn_cell, edges_of, follow, jumps, noised
from ..parts.gan import GAN, AnyGAN, check_apart, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance, stochastic


@dataclass(frozen=True)
class StochasticConsistency:
    """SCott.

    Args:
        teacher_guidance: guidance of the teacher; LCM's.
        grid: intervals from noise to data, rounded up to a whole number in each of the student's steps: of 24 of 1000
            trained times each.
        substeps: solver steps of the teacher in each of them.
        eta: share of an ancestral sampler's noise in each, from 0 to 1.
        ema: decay of the target; 0 for LoRA, where the generator is its own target.
        distance: between the two clean samples.
        huber: c of the Huber distances.
        gan: the adversary of the clean samples; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance(6.0, 16.0, told=True)
    grid: int = 42
    substeps: int = 3
    eta: float = 0.3
    ema: float = 0.95
    distance: DistanceName = "l2"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.4, learned=1.0, kind="hinge")

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_apart(self.gan)
        check_huber(self)
        if self.grid < 1 or self.substeps < 1 or not 0 <= self.eta <= 1:
            raise ValueError(
                f"grid is {self.grid}, substeps {self.substeps} and eta {self.eta:g}: need at least 1, 1, and a share "
                "of an ancestral sampler's noise in [0, 1]"
            )

    @property
    def cycle(self) -> Cycle:
        return (*ONE_TURN, ("discriminator",)) if self.gan.weight else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True) | self.teacher_guidance.needs(target=self.ema > 0)
        return own | needs_gan(self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, r = drawn_cell(cells(edges_of(roles, batch), self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        x_r = stochastic(field, x_t, t, r, eta=self.eta, rng=batch.rng, substeps=self.substeps)
        follow(roles, batch, self.ema)
        interval, scalars = Interval(t, r, batch.full(0.0)), self.teacher_guidance.scalars(batch, field)
        ends = jumps(roles, batch, interval, x_t, x_r, ema=self.ema, scalars=scalars)
        terms = {"consistency": DISTANCES[self.distance](ends.gap, self.huber).mean()}
        return terms | generator_terms(self.gan, roles, batch, Landing(ends.generated, None, t, ends.generated))

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        t, _ = drawn_cell(cells(edges_of(roles, batch), self.grid), batch, roles.process)
        scalars = self.teacher_guidance.scalars(batch, self.teacher_guidance.field(roles, batch))
        with torch.no_grad():
            x0 = through(roles.generator, noised(roles, batch, t).x_t, t, batch.cond, scalars).x0
        return discriminator_losses(self.gan, roles, batch, Landing(x0, None, t, x0))
