"""Weights of matching directions, and the running means that ratios are divided by."""

import torch
from closed_forms import COVARIANCE, MEAN, OTHER_FACTOR, OTHER_MEAN, REAL, believed, close
from torch import Tensor
from torch.distributions import MultivariateNormal

from fastgen.models.state import RatioMeans
from fastgen.objectives.parts.matching import Scores
from fastgen.objectives.parts.ops import Noised
from fastgen.objectives.parts.weights import weighed
from fastgen.process import Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

FAKE = Mixture(OTHER_MEAN[None], (OTHER_FACTOR @ OTHER_FACTOR.T)[None])
UNIT = torch.eye(2, dtype=torch.float64)
TIMES = torch.tensor([0.3, 0.5, 0.8, 0.95], dtype=torch.float64)


def compared(process: Process, s: Tensor | None = None) -> tuple[Scores, Tensor]:
    """Exact scores of two Gaussians at a few times, and the samples."""
    x, eps = torch.randn(2, len(TIMES), 2, dtype=torch.float64)
    noised = Noised.of(process, x, TIMES, eps, s=s)
    nothing = REAL.uncond(len(TIMES))
    beliefs = (ExactDenoiser(process, data)(noised.x_t, TIMES, nothing) for data in (REAL, FAKE))
    return Scores(noised, *beliefs), x


def expected(name: str, process: Process, scores: Scores, x: Tensor, scale: Tensor) -> Tensor:
    alpha, sigma = process.alpha(TIMES)[:, None], process.sigma(TIMES)[:, None]
    if name == "l1":
        real = torch.stack(
            [believed(MEAN, COVARIANCE, x_t[None], a, s)[0] for x_t, a, s in zip(scores.x_t, alpha, sigma, strict=True)]
        )
        return 2 / (x - real).abs().sum(dim=1, keepdim=True)
    return {
        "none": torch.ones_like(alpha),
        "vsd": alpha * sigma / (alpha**2 + sigma**2),
        "kl": alpha * scale / sigma**2,
        "alpha": alpha,
    }[name]


def check_weight(name: str, process: Process) -> None:
    """Of clean samples and of samples at s = 0.2."""
    for s in (None, torch.full_like(TIMES, 0.2)):
        scores, x = compared(process, s)
        scale = process.alpha(TIMES) / (1 if s is None else process.alpha(s))
        wanted = expected(name, process, scores, x, scale[:, None])
        close(weighed(name, scores, x), wanted * (scores.fake.x0 - scores.real.x0))


def check_kl_score(process: Process) -> None:
    """kl (fake - real) is the derivative by x of log q_t - log p_t at its noised sample."""
    scores, x = compared(process)
    alpha, sigma = process.alpha(TIMES), process.sigma(TIMES)
    laws = [
        MultivariateNormal(alpha[:, None] * mean, (alpha**2)[:, None, None] * cov + (sigma**2)[:, None, None] * UNIT)
        for mean, cov in ((OTHER_MEAN, FAKE.covariances[0]), (MEAN, COVARIANCE))
    ]
    moved = x.clone().requires_grad_()
    x_t = alpha[:, None] * moved + sigma[:, None] * scores.noised.eps
    (slope,) = torch.autograd.grad((laws[0].log_prob(x_t) - laws[1].log_prob(x_t)).sum(), moved)
    close(weighed("kl", scores, x), slope)


def check_ratio_means() -> None:
    """Each tenth of the times by its own mean: first the batch's, then a moving one."""
    means = RatioMeans()
    t = torch.tensor([0.05, 0.09, 0.1, 0.95, 1.0], dtype=torch.float64)
    ratio = torch.tensor([1.0, 3.0, 5.0, 2.0, 6.0], dtype=torch.float64)
    close(means.normalise(ratio, t, rate=0.0), torch.tensor([0.5, 1.5, 1.0, 0.5, 1.5], dtype=torch.float64))
    close(means.means, torch.tensor([2.0, 5, 1, 1, 1, 1, 1, 1, 1, 4]))
    close(means.normalise(ratio[:1], t[:1], rate=0.9), ratio[:1] / (0.9 * 2 + 0.1 * 1))
    close(means.means, torch.tensor([1.9, 5, 1, 1, 1, 1, 1, 1, 1, 4]))
