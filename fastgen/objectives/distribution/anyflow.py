"""AnyFlow: flow maps matched on their own rollouts (arXiv:2605.13724), the stage after one that trains a flow map.

The generator is told where its jumps lead, so that any step of any rollout is three jumps away: from noise straight to
where the step begins, the step, and straight to clean data, where the samples are matched as DMD2 matches them. The
number of steps is drawn, a student of any of them is trained. As in the authors' rollout all times are asked of the
map; the first jump is on-policy state alone and carries no gradient. (An open trainer matches the step's own end, which
is noisy, as if it were clean.)

The stage before is `meanflow`, `ayf` or another whose generator is told the time s. The authors' own trains mean
velocities of the data, differentiated over 0.005 of the time: `meanflow` with `velocity: data`.
"""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch

from ...models.calls import Scalars, look, through
from ...models.roles import Roles
from ...process import Latent, Time
from ..parts.base import Batch, Landing
from ..parts.flow_map import divided, edges_of
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores
from ..parts.needs import Needs
from ..parts.rollout import Rollout
from ..parts.score_matching import DirectionMatching
from ..parts.stabilisers import NO_STABILISERS
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class AnyFlow(DirectionMatching):
    """AnyFlow's stage on its own rollouts; the student steps deterministically.

    Args:
        counts: numbers of steps, of which one is drawn for a batch; the student's times are divided or merged.
    """

    ratio: int = 5
    guidance: AnyGuidance = Fixed(3.0)
    counts: tuple[int, ...] = (2, 4, 8, 16, 50)

    def check(self) -> None:
        """Refuses what its turns cannot train."""
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts is {list(self.counts)}: need numbers of steps from 1 on, such as [2, 4, 8]")
        held = (self.stabilisers.skip, self.stabilisers.segments, self.stabilisers.diversity)
        if held != (False, NO_STABILISERS.segments, NO_STABILISERS.diversity):
            raise ValueError(
                "stabilisers.skip, segments and diversity ask for steps of a generator that is not told where they "
                "lead, and this one is: leave them out"
            )

    @property
    def rollout(self) -> Rollout:
        """A function, see `jumped`."""
        return partial(jumped, counts=self.counts)

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode", scalars={"generator": {"s"}})

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        return weighed(self.weight, scores, x0)


def jumped(roles: Roles, batch: Batch, *, counts: tuple[int, ...]) -> Landing:
    """Noise, one jump to the beginning of a step, the step, and a jump to clean data; the latter two with gradient.

    The number of steps and the step are the same on every rank.
    """
    count = counts[_drawn(len(counts), batch)]
    grid, k = divided(edges_of(roles, batch), count), _drawn(count, batch)
    first, t, s = (batch.full(grid[i]) for i in (0, k, k + 1))
    x = roles.process.prior(batch.noise(), first)
    if k:
        x = look(roles.generator, x, first, batch.cond, _told(roles, t)).at(t)
    belief = through(roles.generator, x, t, batch.cond, _told(roles, s))
    if k + 1 < count:
        belief = through(roles.generator, belief.at(s), s, batch.cond, _told(roles, torch.zeros_like(s)))
    return Landing(belief.x0, None, t, belief.x0)


def _told(roles: Roles, s: Time) -> Scalars:
    return {"s": s} if "s" in roles.generator.scalars else {}


def _drawn(count: int, batch: Batch) -> int:
    return int(torch.randint(count, (), generator=batch.shared_rng, device=batch.shared_rng.device))
