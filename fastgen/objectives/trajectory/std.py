"""STD: single trajectory distillation (Xu et al. 2024, arXiv:2412.18945, and its code), of image-to-image students.

Image-to-image calls of one strength all begin at one time. Training begins there too, at noised images, and goes along
the guided teacher's trajectory: jumps from two neighbouring states of it have to end in the same point at a time s
below both. The code keeps a few trajectories in a bank and moves one of them a step further in each update. Here each
batch begins anew and walks to a random depth, which gives states of the same distribution without a memory.

The adversary is asymmetric. A vision model sees the decoded x_s with the noise that is in it, and beside it decoded
images that are noised to r, uniform in [0, s]. So exact jumps are not its fixed point where s > 0: it asks them for
less noise than there is at s. At s = 0 it compares with the data. The published WGAN loss is cut off at a margin, which
gives it the gradient of the hinge loss used here. Its penalty on slopes, of weight 1e-5, is left out.
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
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import SAME, Interval, Jumps, cells, edges_of, jumps, noised, origin
from ..parts.gan import GAN, AnyGAN, check_unweighed, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.originals import Originals, TimedSamples
from ..parts.solvers import SOLVERS, AnyScale, Field, Guidance, SolverName


@dataclass(frozen=True)
class SingleTrajectory:
    """STD; the student steps deterministically.

    Args:
        teacher_guidance: guidance of the teacher, constant along a trajectory; the paper's 5 to 15 are 6 to 16 in
            Diffusers' convention.
        strength: process time at which trajectories begin. The paper has 0.75, for image-to-image calls of that
            strength; a student that samples from noise needs 1.
        grid: intervals from noise to data, rounded up to a whole number in each of the student's steps. Jumps from both
            ends of one have to agree, so that many intervals are a long chain, whose errors add up.
        reach: largest distance of s from t, as a share of the trajectory's intervals.
        solver: solver of the teacher's steps.
        substeps: solver steps of the teacher in one interval; the code has one.
        distance: between the two jumps.
        huber: c of the Huber distances.
        gan: the adversary of decoded samples; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance(6.0, 16.0)
    strength: float = 1.0
    grid: int = 50
    reach: float = 0.5
    solver: SolverName = "ddim"
    substeps: int = 1
    distance: DistanceName = "huber"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.7, learned=1.0, kind="hinge", pixels=True)

    def __post_init__(self) -> None:
        check_huber(self)
        check_unweighed(self.gan)
        if min(self.grid, self.substeps) < 1 or not (0 < self.strength <= 1 and 0 < self.reach <= 1):
            raise ValueError(
                f"grid is {self.grid}, substeps {self.substeps}, strength {self.strength:g} and reach {self.reach:g}: "
                "need at least 1, 1, a time in (0, 1] and a share in (0, 1]"
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
        """Jump from two neighbouring states of each trajectory, at one depth for all rows, to a drawn s of each row."""
        route, field = self._route(roles, batch), self.teacher_guidance.field(roles, batch)
        depth, x_t = self._state(roles, batch, field, route)
        below = integers(batch.rng, min(math.ceil(self.reach * (len(route) - 1)), len(route) - 1 - depth), batch.size)
        clean, times = origin(roles.process, below.device), sent(route, below.device)
        t, r = batch.full(float(route[depth])), batch.full(float(route[depth + 1])).clamp(min=clean)
        x_r = SOLVERS[self.solver](field, x_t, t, r, substeps=self.substeps)
        interval = Interval(t, r, times[depth + 1 + below].clamp(min=clean))
        return jumps(roles, batch, interval, x_t, x_r, ema=0.0, scalars=self.teacher_guidance.scalars(batch, field))

    def _route(self, roles: Roles, batch: Batch) -> Tensor:
        """The ends of the intervals [n] from the beginning of trajectories to 0, descending, on the host."""
        grid = cells(edges_of(roles, batch), self.grid)
        return grid[min(int((grid > self.strength + SAME).sum()), len(grid) - 2) :]

    def _state(self, roles: Roles, batch: Batch, field: Field, route: Tensor) -> tuple[int, Latent]:
        """Draw a depth, the same for all processes, and return it with the teacher's state after as many steps."""
        shared = batch.shared_rng
        depth = int(torch.randint(len(route) - 1, (), generator=shared, device=shared.device))
        times: Sequence[Tensor] = [batch.full(float(t)) for t in route[: depth + 1]]
        x = noised(roles, batch, times[0]).x_t
        for t, r in pairwise(times):
            x = SOLVERS[self.solver](field, x, t, r, substeps=self.substeps)
        return depth, x


def as_it_is(ends: Jumps) -> Landing:
    """A landing whose sample is judged without being denoised or renoised first."""
    return Landing(ends.generated, None, ends.s, ends.generated)


def cleaner(roles: Roles, batch: Batch, landing: Landing) -> TimedSamples:
    """Images noised to times that are uniform in [0, s], s being the time of the generated samples."""
    r = landing.t * uniform(batch.rng, batch.size, dtype=torch.float64)
    return TimedSamples(roles.process.renoise(batch.x0, r, batch.noise()))


CLEANER = Originals(cleaner, Needs(images=True))
