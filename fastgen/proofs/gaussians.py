"""Proof 1, as far as it is the same for every objective: between Gaussians all scores and distances are exact.

The generator is affine, so that its samples are a Gaussian too, and takes one step.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from ..models.roles import Roles
from ..models.state import STATES
from ..models.walk import Plan
from ..objectives import Batch, Objective, Pair, Terms, roles_of
from ..process import Process, even_grid
from .analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture
from .bed import PROCESSES, seeded
from .check import Check
from .toy import indifferent

REAL = Mixture(torch.tensor([[0.3, -0.5]]), torch.tensor([[[0.8, 0.2], [0.2, 0.5]]]))
OTHER_MEAN = torch.tensor([0.9, 0.1], dtype=torch.float64)
OTHER_FACTOR = torch.tensor([[1.1, 0.0], [-0.4, 0.7]], dtype=torch.float64)
COUNT, REACH, STILL = 4096, 1e-4, 1e-3


def applies(objective: Objective) -> bool:
    """Whether an affine generator can stand in: the objective compares samples or trains one step, no whole path.

    Not where it is differentiated by time, or told where a step leads: there it would have to be the path itself.
    """
    needs = objective.needs
    if needs.anchored or needs.fine_times or "s" in needs.scalars_of("generator"):
        return False
    return "fake_score" in roles_of(objective) or objective.needs.one_step


def gaussian_checks(objective: Objective, process: str) -> list[Check]:
    """The generator's terms pull where they should, and nowhere once the generator is the teacher."""
    chosen = PROCESSES[process]
    other = AffineGenerator(chosen, OTHER_MEAN, OTHER_FACTOR)
    pull = pulled(objective, _roles(objective, other, other.law()))
    if pull is None:
        return [Check(f"gaussians/{process}: reaches the generator", False, "no term depends on its parameters")]
    rest = pulled(objective, _roles(objective, exact_student(chosen), REAL))
    strength, left = (float(x.norm()) if x is not None else 0.0 for x in (pull, rest))
    return [
        Check(f"gaussians/{process}: reaches the generator", 0 < strength < float("inf"), f"gradient {strength:.2g}"),
        _descent(pull, process),
        Check(
            f"gaussians/{process}: rests where fake = real",
            left < STILL * strength,
            f"gradient {left:.1e}, away from there {strength:.2g}",
        ),
    ]


def exact_student(process: Process) -> AffineGenerator:
    """The teacher's probability flow from pure noise to data, which is affine."""
    starts = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    one = torch.ones(3, dtype=torch.float64)
    ends = ExactDenoiser(process, REAL).flow_map(process.prior(starts, one), one, 0 * one, REAL.uncond(3))
    return AffineGenerator(process, ends[0], (ends[1:] - ends[0]).T)


def pulled(objective: Objective, roles: Roles) -> Tensor | None:
    """Gradient [6] of the generator's summed terms by mean and factor; None where nothing reaches them."""
    generator, turn = roles["generator"], ("generator",)
    assert isinstance(generator, AffineGenerator)
    with roles.training(turn):
        terms: Terms = getattr(objective, turn[0])(roles, _batch(objective, roles))
        loss = torch.stack(list(terms.values())).sum()
        if not loss.requires_grad:
            return None
        slopes = torch.autograd.grad(loss, [generator.mean, generator.factor], allow_unused=True)
    reached = [slope.flatten() for slope in slopes if slope is not None]
    return torch.cat(reached) if len(reached) == 2 else None


def _descent(pull: Tensor, process: str) -> Check:
    """How exact distances change along the step downhill, by central differences; the KL divergence has to fall."""
    step, found = -pull / pull.norm(), {}
    for name, measure in DISTANCES.items():
        ahead, behind = (measure(*_moved(sign * REACH * step)) for sign in (1, -1))
        found[name] = float(ahead - behind) / (2 * REACH)
    figures = ", ".join(f"{name} {slope:+.2f}" for name, slope in found.items())
    return Check(f"gaussians/{process}: a step downhill nears the data", found["KL"] < 0, f"slopes {figures}")


def _moved(by: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the other generator's samples after a step of its parameters."""
    factor = OTHER_FACTOR + by[2:].reshape(2, 2)
    return OTHER_MEAN + by[:2], factor @ factor.T


def _reverse_kl(mean: Tensor, covariance: Tensor) -> Tensor:
    return kl_divergence(MultivariateNormal(mean, covariance), _data())


def _forward_kl(mean: Tensor, covariance: Tensor) -> Tensor:
    return kl_divergence(_data(), MultivariateNormal(mean, covariance))


def _wasserstein(mean: Tensor, covariance: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance (Gelbrich 1990)."""
    root = _root(REAL.covariances[0])
    cross = _root(root @ covariance @ root)
    spread = torch.trace(covariance + REAL.covariances[0] - 2 * cross)
    return (mean - REAL.means[0]).square().sum() + spread


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "KL": _reverse_kl,
    "forward KL": _forward_kl,
    "Wasserstein": _wasserstein,
}


def _data() -> MultivariateNormal:
    return MultivariateNormal(REAL.means[0], REAL.covariances[0])


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _roles(objective: Objective, generator: AffineGenerator, law: Mixture) -> Roles:
    """The generator with the exact scores of the data and of that law of its own samples."""
    real, fake = ExactDenoiser(generator.process, REAL), ExactDenoiser(generator.process, law)
    members = {"generator": generator, "target": copy.deepcopy(generator), "real_score": real, "fake_score": fake}
    states: dict[str, nn.Module] = {name: STATES[name]() for name in objective.needs.states}
    states |= {"coach": exact_student(generator.process)} if objective.needs.coach else {}
    states |= {"rewards": indifferent()} if objective.needs.rewards else {}
    return Roles(members | {"discriminator": ExactRatio(real, fake)} | states, Plan([even_grid(1)]))


def _batch(objective: Objective, roles: Roles) -> Batch:
    """A batch of thousands of samples, with what the objective needs."""
    rng, shared_rng = seeded(0), seeded(1)
    labels = torch.zeros(COUNT, dtype=torch.long)
    cond = REAL.cond(labels) if objective.needs.null else REAL.uncond(COUNT)
    batch = Batch(cond, (2,), rng, shared_rng, real=REAL.sample(COUNT, rng).float())
    eps, one = batch.noise(), batch.full(1.0)
    ends = ExactDenoiser(roles.process, REAL).flow_map(roles.process.prior(eps, one), one, 0 * one, cond)
    batch.pairs = Pair(eps, ends)
    return batch
