"""Exact flow maps of Gaussians by plain linear algebra, and networks that know them, for the tests."""

from collections.abc import Callable, Mapping, Sequence

import torch
from closed_forms import MEAN, REAL, ScriptedBatch, close, streams
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.state import STATES
from fastgen.models.walk import Plan
from fastgen.objectives import Objective
from fastgen.objectives.parts.flow_map import Interval, jumps
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.process import ROWS, Prediction, Process, Row, even_grid
from fastgen.proofs.analytic import ExactDenoiser

VALUES, VECTORS = torch.linalg.eigh(REAL.covariances[0])
SIZE = 64

Belief = Callable[[Process, Tensor, Tensor, Mapping[str, Tensor]], Prediction]
"""(process, x_t, t, scalars) -> the prediction of a network that knows the flow map."""


def mapped(process: Process, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """X_{t -> s}(x) of REAL: alpha_s m + sqrt(V_s / V_t) (x - alpha_t m) in the eigenbasis of its covariance."""
    alpha_t, alpha_s = process.alpha(t)[:, None], process.alpha(s)[:, None]
    at_t = alpha_t**2 * VALUES + process.sigma(t)[:, None] ** 2
    at_s = alpha_s**2 * VALUES + process.sigma(s)[:, None] ** 2
    whitened = (x - alpha_t * MEAN) @ VECTORS
    return alpha_s * MEAN + (whitened * (at_s / at_t).sqrt()) @ VECTORS.T


def exactly(process: Process) -> Callable[..., Tensor]:
    """A solver without error."""
    return lambda field, x, t, s, *, substeps=1: mapped(process, x, t, s)


def clean_at(end: float) -> Belief:
    """A consistency model: its clean sample is the trajectory's point at that time."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
        return Prediction.of_x0(process, x, t, mapped(process, x, t, torch.full_like(t, end)))

    return belief


def jumping(end: Callable[[Tensor], Tensor]) -> Belief:
    """A network whose step from t to end(t) is exact; where that is t itself, the one to t / 2."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
        t = torch.where(t > 0, t, 0.5)  # nobody reads what is said of clean data
        s = torch.where(end(t) < t, end(t), t / 2)
        return joined(process, x, t, mapped(process, x, t, s), s)

    return belief


def two_times(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
    """A network whose step to the told time s is exact; at s = t, the exact denoiser."""
    t, s = torch.where(t > 0, t, 0.5), scalars["s"]
    apart = s < t
    jump = joined(process, x, t, mapped(process, x, t, s), torch.where(apart, s, t / 2))
    plain = ExactDenoiser(process, REAL)(x, t, REAL.uncond(len(t)))
    return plain.lerp(jump, apart.double())


def joined(process: Process, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Prediction:
    """x0 and eps of which x_t and x_s are made, by a 2 x 2 solve."""
    levels = torch.stack([torch.stack([process.alpha(u), process.sigma(u)], 1) for u in (t, s)], 1)
    x0, eps = torch.linalg.solve(levels, torch.stack([x_t, x_s], 1)).unbind(1)
    return Prediction(process, t, x0, eps)


class Knowing(nn.Module):
    """A network that knows the flow map, but for a bias of its output; its parameter is the bias [2]."""

    def __init__(
        self, process: Process, belief: Belief, *, row: Row = ROWS["flow"], scalars: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.process, self.belief, self.row, self.scalars = process, belief, row, scalars
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.told: list[Mapping[str, Tensor]] = []

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        self.told.append(scalars or {})
        exact = self.belief(self.process, x_t, t, scalars or {})
        return Prediction.solve(self.process, x_t, t, exact.output(self.row) + self.bias, row=self.row)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return null.lerp(cond, w)

    def tap(self, x_t: Tensor, t: Tensor, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise ValueError("it has no layers")


def knowing_roles(
    objective: Objective,
    process: Process,
    belief: Belief,
    *,
    grids: list[Tensor] | None = None,
    row: Row = ROWS["flow"],
) -> Roles:
    """An unbiased generator and target that know the flow map, the exact score, and the objective's states."""
    scalars = objective.needs.scalars_of("generator")
    members: dict[str, nn.Module] = {
        name: Knowing(process, belief, row=row, scalars=scalars) for name in ("generator", "target")
    }
    members["real_score"] = ExactDenoiser(process, REAL)
    members |= {name: STATES[name]() for name in objective.needs.states}
    return Roles(members, Plan(grids or [even_grid(1)]))


def gaussian_batch(*, images: int = 0, seed: int = 0, size: int = SIZE) -> ScriptedBatch:
    """Samples of REAL, and noises, in float64."""
    rng = torch.Generator().manual_seed(100 + seed)
    real = REAL.sample(size, rng)
    script = [torch.randn(size, 2, generator=rng, dtype=torch.float64) for _ in range(8)]
    batch = ScriptedBatch(REAL.uncond(size), (2,), **streams(seed), real=real, script=script)
    batch.images = images
    return batch


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_jumps(process: Process) -> None:
    """From t and from r on one trajectory to the same point at s; from r = s nowhere."""
    roles = knowing_roles(LatentConsistency(), process, jumping(lambda t: torch.full_like(t, 0.2)))
    batch = gaussian_batch(size=4)
    t, r, s = times(0.9, 0.8, 0.6, 0.5), times(0.7, 0.4, 0.3, 0.2), torch.full((4,), 0.2, dtype=torch.float64)
    x_t = process.renoise(batch.x0, t, batch.noise())
    x_r = mapped(process, x_t, t, r)
    roles.target.bias.data.fill_(0.1)
    with roles.training(("generator",)):
        found = jumps(roles, batch, Interval(t, r, s), x_t, x_r, ema=0.0)
    close(found.generated, mapped(process, x_t, t, s))
    close(found.target, mapped(process, x_t, t, s))
    assert torch.equal(found.target[3], x_r[3])
    assert found.generated.requires_grad
    assert not found.target.requires_grad
    averaged = jumps(roles, batch, Interval(t, r, s), x_t, x_r, ema=0.5)
    assert (averaged.target - found.target)[:3].norm() > 1e-3, "the target role is asked"
    assert torch.equal(averaged.target[3], x_r[3])
