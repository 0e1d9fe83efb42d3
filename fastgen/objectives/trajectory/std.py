"""STD: single trajectory distillation (Xu et al. 2024, arXiv:2412.18945, and its code), of image-to-image students.

Noised images begin, at one time, where image-to-image calls of that strength do, and all that the student is trained
at lies on the guided teacher's own way from there. Jumps from neighbouring states to one time s below both have to
agree. The code walks a few trajectories on by one step an update and keeps their states in a bank; here a batch walks
anew to a depth that is drawn, so that states have the same law and nothing has to be remembered.

The adversary is asymmetric. A vision model sees the decoded x_s, noise and all, beside decoded images at less noise,
r uniform below s. That is no distance between the two jumps: exact jumps to s are not its fixed point, since it asks
them for less noise than they have there; where s is clean data, it asks for the data. Its published loss, a WGAN's
that is cut off at a margin, has the hinge loss's gradient. Not there: the penalty of weight 1e-5 on its slope.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...models.conditioning import sent
from ...models.roles import Roles
from ...process import Latent
from ...seeds import integers, uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Landing, Terms
from ..parts.distances import DISTANCES, DistanceName
from ..parts.flow_map import SAME, Interval, Jumps, cells, edges_of, jumps, noised, origin
from ..parts.gan import GAN, AnyGAN, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.originals import Originals, Rows
from ..parts.solvers import SOLVERS, AnyScale, Field, Guidance, SolverName
from ..parts.unread import check_huber


@dataclass(frozen=True)
class SingleTrajectory:
    """STD; the student steps deterministically.

    Args:
        teacher_guidance: of the teacher, one along a whole trajectory; the paper's 5 to 15 are 6 to 16 in Diffusers'
            convention.
        strength: time where trajectories begin. The paper's is 0.75, for image-to-image calls of that strength; a
            student that is to sample from noise needs 1.
        grid: solver steps from noise to data, rounded up to a whole number in each of the student's steps.
        reach: s lies at most that share of the trajectory's steps below t.
        solver: of one step.
        distance: between the two jumps.
        huber: c of the Huber distances.
        gan: the adversary of decoded samples; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance(6.0, 16.0)
    strength: float = 1.0
    grid: int = 50
    reach: float = 0.5
    solver: SolverName = "ddim"
    distance: DistanceName = "huber"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.7, learned=1.0, kind="hinge", pixels=True)

    def __post_init__(self) -> None:
        check_huber(self)
        if self.grid < 1 or not (0 < self.strength <= 1 and 0 < self.reach <= 1):
            raise ValueError(
                f"grid is {self.grid}, strength {self.strength:g} and reach {self.reach:g}: need at least 1, a time in "
                "(0, 1] and a share in (0, 1]"
            )
        if self.gan.weight and not self.gan.pixels:
            raise ValueError(
                "gan.pixels is false, and the adversary compares samples at noise levels that differ, of which it must "
                "not be told: set gan.pixels=true, or gan=0"
            )

    @property
    def cycle(self) -> Cycle:
        return (*ONE_TURN, ("discriminator",)) if self.gan.weight else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, sampler="ode")
        return own | self.teacher_guidance.needs() | needs_gan(self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        ends = self.jumps(roles, batch)
        terms = {"consistency": DISTANCES[self.distance](ends.gap, self.huber).mean()}
        return terms | generator_terms(self.gan, roles, batch, as_it_is(ends), originals=CLEANER)

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        with torch.no_grad():
            ends = self.jumps(roles, batch)
        return discriminator_losses(self.gan, roles, batch, as_it_is(ends), originals=CLEANER)

    def jumps(self, roles: Roles, batch: Batch) -> Jumps:
        """From two neighbouring states of each row's trajectory, all rows at one depth, to a time of its own."""
        route, field = self._route(roles, batch), self.teacher_guidance.field(roles, batch)
        depth, x_t = self._state(roles, batch, field, route)
        below = integers(batch.rng, min(math.ceil(self.reach * (len(route) - 1)), len(route) - 1 - depth), batch.size)
        clean, times = origin(roles.process, below.device), sent(route, below.device)
        t, r = batch.full(float(route[depth])), batch.full(float(route[depth + 1])).clamp(min=clean)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval = Interval(t, r, times[depth + 1 + below].clamp(min=clean))
        return jumps(roles, batch, interval, x_t, x_r, ema=0.0, scalars=self.teacher_guidance.scalars(batch, field))

    def _route(self, roles: Roles, batch: Batch) -> Tensor:
        """The solver's times [n] from the beginning of trajectories to 0, descending, on the host."""
        grid = cells(edges_of(roles, batch), self.grid)
        return grid[min(int((grid > self.strength + SAME).sum()), len(grid) - 2) :]

    def _state(self, roles: Roles, batch: Batch, field: Field, route: Tensor) -> tuple[int, Latent]:
        """How many steps the teacher has come, but for the last one, and where it is."""
        shared = batch.shared_rng
        depth = int(torch.randint(len(route) - 1, (), generator=shared, device=shared.device))
        times: Sequence[Tensor] = [batch.full(float(t)) for t in route[: depth + 1]]
        x = noised(roles, batch, times[0]).x_t
        for t, r in pairwise(times):
            x = SOLVERS[self.solver](field, x, t, r)
        return depth, x


def as_it_is(ends: Jumps) -> Landing:
    """The generated sample, at the noise that it has, in the place of a clean one."""
    return Landing(ends.generated, None, ends.s, ends.generated)


def cleaner(roles: Roles, batch: Batch, landing: Landing) -> Rows:
    """Images at times that are uniform below that of the generated samples, as they are."""
    r = landing.t * uniform(batch.rng, batch.size, dtype=torch.float64)
    return Rows(roles.process.renoise(batch.x0, r, batch.noise()))


CLEANER = Originals(cleaner, Needs(images=True))
