"""EM distillation (Xie et al. 2024, arXiv:2405.16852).

Maximum likelihood by expectation maximisation: of a noisy sample x = alpha g(z) + sigma eps the pair (eps, z) takes
Langevin steps towards the posterior given that x is the teacher's,

    eps <- eps + a [sigma (s_real - s_fake)(x) - eps] + sqrt(2 a) xi
    z   <- z   + b [alpha J^T (s_real - s_fake)(x) - z] + sqrt(2 b) zeta,   J = dg / dz,

and g(z) at the z where they end is moved to x. What the chain's own noise xi has added to eps is taken off
(section 3.4): of eps remains, in units of x0, the sum of what the scores said, real - fake, of which each further step
forgets a share a. One step without one of z is `diff_instruct` times a; many small ones tend to the forward KL
divergence, exactly so in what moves all samples alike: z depends on xi, the more the larger b is, and that is taken
off with it.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Latent, Time, pad_like
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores, scored
from ..parts.needs import Needs
from ..parts.ops import Noised, renoised, surrogate
from ..parts.rollout import Rollout, first_time
from ..parts.score_matching import ScoreMatching
from ..parts.weights import WEIGHTS, WeightName


@dataclass(frozen=True)
class FromNoise(Landing):
    """A sample of one step, and the unit noise [B, ...] that it was made of, which its graph goes back to."""

    noise: Latent


@dataclass(frozen=True)
class Chain:
    """Where the Langevin steps of a batch stand, [B, ...] each.

    Args:
        z: noise that the generator is called with.
        eps: noise in x_t.
        pull: where g(z) is to go, real - fake in x0 as far as it is remembered.
    """

    z: Latent
    eps: Latent
    pull: Latent


@final
@dataclass(frozen=True)
class EMDistillation(ScoreMatching):
    """Generated samples, and the noises that they are made of, are corrected by Langevin steps, and then regressed.

    The step sizes are said to be the paper's; no code of it is public.

    Args:
        corrections: Langevin steps of each sample; one generator call, and one of both scores, for each.
        noise_step: a, of the noise in x_t; below 1.
        latent_step: b, of the noise that the generator is called with; 0 leaves it, and spares a backward pass each.
    """

    weight: WeightName = "none"
    guidance: AnyGuidance = Fixed(1.0)
    corrections: int = 8
    noise_step: float = 0.16
    latent_step: float = 1.6e-5

    def check(self) -> None:
        if self.corrections < 1:
            raise ValueError(f"corrections is {self.corrections}: nothing is learned of none, need at least 1")
        if not 0 < self.noise_step < 1 or not 0 <= self.latent_step < 1:
            raise ValueError(
                f"noise_step is {self.noise_step:g} and latent_step {self.latent_step:g}: Langevin steps of 1 forget "
                "where they began, need 0 < noise_step < 1 and 0 <= latent_step < 1"
            )

    @property
    def rollout(self) -> Rollout:
        return lambda roles, batch: _made(roles, batch, batch.noise().requires_grad_(), first_time(roles, batch))

    @property
    def also(self) -> Needs:
        return Needs(one_step=True)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        assert isinstance(landing, FromNoise), "the rollout's"
        scales, t = self.guidance.drawn(batch.shared_rng), self.times.sample(roles.process, batch.size, batch.rng)
        chain = Chain(landing.noise, batch.noise(), torch.zeros_like(landing.noise))
        here = landing
        for step in range(self.corrections):
            if step:
                with torch.set_grad_enabled(self.latent_step > 0):
                    here = _made(roles, batch, chain.z.requires_grad_(self.latent_step > 0), landing.t)
            noised = Noised.of(roles.process, here.x.detach(), t, chain.eps)
            scores = scored(look, scales, roles, batch, here, noised)
            chain = self._corrected(batch, chain, here, scores)
        ended = _made(roles, batch, chain.z.detach(), landing.t)
        away = -WEIGHTS[self.weight](scores, here.x0) * chain.pull
        seen = renoised(roles, batch, ended.x, law=self.times)
        return {"dm": surrogate(ended.x0, away)} | generator_terms(self.gan, roles, batch, ended, seen)

    def _corrected(self, batch: Batch, chain: Chain, landing: Landing, scores: Scores) -> Chain:
        """One Langevin step of the noise in x_t, and of the generator's own."""
        a, b, kick = self.noise_step, self.latent_step, scores.fake.eps - scores.real.eps
        eps = chain.eps + a * (kick - chain.eps) + math.sqrt(2 * a) * batch.noise()
        pull = (1 - a) * chain.pull + a * (scores.real.x0 - scores.fake.x0)
        if not b:
            return Chain(chain.z, eps, pull)
        alpha, sigma = scores.levels
        (slope,) = torch.autograd.grad(landing.x, chain.z, pad_like(alpha / sigma, kick).to(landing.x.dtype) * kick)
        z = chain.z.detach()
        return Chain(z + b * (slope - z) + math.sqrt(2 * b) * batch.noise(), eps, pull)


def _made(roles: Roles, batch: Batch, noise: Latent, t: Time) -> FromNoise:
    """One call of the generator at t, with gradient."""
    belief = through(roles.generator, roles.process.prior(noise, t), t, batch.cond)
    return FromNoise(belief.x0, None, t, belief.x0, noise)
