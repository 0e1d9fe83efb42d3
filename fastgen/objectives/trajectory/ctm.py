"""CTM: consistency trajectory models (Kim et al. 2024, arXiv:2310.02279, and its code): jumps between any two times.

The generator that is told a time s jumps there from t, G(x, t, s): the deterministic step of what it believes. At s = t
that is the identity whatever it believes, and the belief is to be the denoiser's. A jump from t, and one from u < t
where the teacher's solver has led, have to end in the same point, compared after a moving average of the generator has
carried both to clean data (soft consistency). Long solver steps teach the teacher's ends, short ones agreement.

The paper's LPIPS is not among the distances, and its adversary sees pixels (`gan.pixels`). Its terms are balanced by
their gradients in the last layer, which a LoRA need not train: here by those in the clean samples that each judges.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import Scalars, through
from ...models.conditioning import sent
from ...models.contract import Denoiser
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogNormal, Prediction, Time, Uniform, pad_like
from ...seeds import integers, uniform
from ...unread import refuse_unread
from ..parts.base import ONE_TURN, Batch, Cycle, Landing, Terms
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import Interval, cells, check_decay, edges_of, follow, noised, origin
from ..parts.gan import GAN, AnyGAN, acts, check_apart, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.ops import denoising_loss
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName

NOISY = Uniform(0.3, 1.0)
"""The noisier 0.7 of the times, where a share of the denoised samples lies."""
LEAST, MOST = 0.01, 10.0
"""Of the balance between jumps and adversary."""


@dataclass(frozen=True)
class ConsistencyTrajectory:
    """CTM; a student that renoises is told s = 0, one that steps deterministically where each step leads.

    Args:
        teacher_guidance: guidance of the teacher.
        grid: solver steps from noise to data, rounded up to a whole number in each of the student's steps.
        most: most steps by which the teacher leads from t to u; so many are drawn for a batch.
        solver: solver of these steps.
        distance: between the two clean samples.
        huber: c of the Huber distances.
        ema: decay of the average that carries jumps to clean data.
        denoising: weight of the denoising loss at s = t, in units of the jumps' gradient; 0 for none.
        denoised: its noise levels.
        noisy: share of them that is drawn evenly from the noisier 0.7 of the times instead.
        gan: the adversary of the jumps' clean samples, its weight likewise in units of their gradient; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance()
    grid: int = 18
    most: int = 17
    solver: SolverName = "heun"
    distance: DistanceName = "l2"
    huber: float = 0.00054
    ema: float = 0.999
    denoising: float = 1.0
    denoised: AnyTimeLaw = LogNormal(-1.2, 1.2)
    noisy: float = 0.5
    gan: AnyGAN = GAN(weight=1.0, learned=1.0, kind="hinge")

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_apart(self.gan)
        check_huber(self)
        if not self.ema:
            raise ValueError("ema is 0: what carries jumps to clean data is an average, need above 0, such as 0.999")
        if self.grid < 1 or self.most < 1 or self.denoising < 0 or not 0 <= self.noisy <= 1:
            raise ValueError(
                f"grid is {self.grid}, most {self.most}, denoising {self.denoising:g} and noisy {self.noisy:g}: need "
                "at least 1, 1 and 0, and a share in [0, 1]"
            )
        if not self.denoising:
            refuse_unread(self, "denoised", "noisy", why="denoising is 0", remedy="set a weight above 0")
        if self.denoising and (self.teacher_guidance.low, self.teacher_guidance.high) != (1, 1):
            raise ValueError(
                "denoising learns what the data are, and the jumps follow a guided teacher: set denoising=0, or "
                "teacher_guidance=1"
            )

    @property
    def cycle(self) -> Cycle:
        return (*ONE_TURN, ("discriminator",)) if self.gan.weight else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, scalars={role: {"s"} for role in ("generator", "target")})
        return own | self.teacher_guidance.needs(target=True) | needs_gan(self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        field = self.teacher_guidance.field(roles, batch)
        told, (interval, steps) = self.teacher_guidance.scalars(batch, field), self._interval(roles, batch)
        t, u, s = interval.t, interval.r, interval.s
        x_t = noised(roles, batch, t).x_t
        x_u = SOLVERS[self.solver](field, x_t, t, u, substeps=steps)
        with torch.no_grad():
            aim = to_clean(roles, batch, x_u, u, s, told)
        made = to_clean(roles, batch, x_t, t, s, told)
        terms = {"consistency": DISTANCES[self.distance](made - aim, self.huber).mean()}
        pull = strength(terms["consistency"], made)
        if self.denoising:
            terms["denoise"] = self.denoising * self._denoising(roles, batch, told, pull)
        if acts(self.gan, batch):
            there = made.detach().requires_grad_()
            (judged,) = generator_terms(self.gan, roles, batch, Landing(there, None, t, there)).values()
            judged = along_slope(judged, there, made)
            balance = self.gan.weight * pull / strength(judged, made)
            terms["gan"] = balance.clamp(LEAST, MOST) * judged
        return terms

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        field = self.teacher_guidance.field(roles, batch)
        told, (interval, _) = self.teacher_guidance.scalars(batch, field), self._interval(roles, batch)
        with torch.no_grad():
            made = to_clean(roles, batch, noised(roles, batch, interval.t).x_t, interval.t, interval.s, told)
        return discriminator_losses(self.gan, roles, batch, Landing(made, None, interval.t, made))

    def _interval(self, roles: Roles, batch: Batch) -> tuple[Interval, int]:
        """Points t > u >= s of the solver's grid, u as many steps below t for all rows of the batch."""
        grid = cells(edges_of(roles, batch), self.grid)
        count, shared = len(grid) - 1, batch.shared_rng
        steps = 1 + int(torch.randint(min(self.most, count), (), generator=shared, device=shared.device))
        grid = sent(grid, batch.rng.device)
        i = integers(batch.rng, count - steps + 1, batch.size)
        below = uniform(batch.rng, batch.size, dtype=torch.float64) * (count - steps - i + 1)
        return Interval(grid[i], grid[i + steps], grid[i + steps + below.long()]), steps

    def _denoising(self, roles: Roles, batch: Batch, told: Scalars, pull: Tensor) -> Tensor:
        """The denoising loss under EDM's weight; its gradient in the denoised samples is as long as `pull`."""
        t = self.denoised.sample(roles.process, batch.size, batch.rng)
        noisy = uniform(batch.rng, batch.size) < self.noisy
        t = torch.where(noisy, NOISY.sample(roles.process, batch.size, batch.rng), t)
        start = noised(roles, batch, t)
        x0 = through(roles.generator, start.x_t, t, batch.cond, {"s": t, **told}).x0
        loss = denoising_loss(Prediction.of_x0(roles.process, start.x_t, t, x0), start, space="edm")
        return pull / strength(loss, x0) * loss


def to_clean(roles: Roles, batch: Batch, x: Latent, t: Time, s: Time, told: Scalars) -> Latent:
    """Where the generator's jump to s ends, carried to clean data by its average."""
    x_s = jumped(roles.generator, batch, x, t, s, told)
    return jumped(roles.target, batch, x_s, s, torch.zeros_like(s), told)


def jumped(model: Denoiser, batch: Batch, x: Latent, t: Time, s: Time, told: Scalars) -> Latent:
    """G(x, t, s); x itself where it is at s already, or as clean as a sample can be."""
    there = t <= s.clamp(min=origin(model.process, t.device))
    asked = torch.where(there, torch.ones_like(t), t)
    return torch.where(pad_like(there, x), x, through(model, x, asked, batch.cond, {"s": s, **told}).at(s))


def along_slope(loss: Tensor, there: Latent, x: Latent) -> Tensor:
    """A loss of `there`, which is x without its graph, as one of x: what is between them is differentiated but once."""
    (slope,) = torch.autograd.grad(loss, there)
    return loss.detach() + (slope * (x - there.detach())).sum()


def strength(loss: Tensor, x: Latent) -> Tensor:
    """Length of the loss's gradient in x, a constant above 0."""
    (slope,) = torch.autograd.grad(loss, x, retain_graph=True)
    length: Tensor = slope.norm()
    return length.clamp(min=torch.finfo(length.dtype).tiny)
