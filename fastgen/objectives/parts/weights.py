"""Weights of a matching direction fake - real in x0: what each method multiplies it by."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ...process import Latent, pad_like
from .matching import Scores
from .ops import mean_abs

WeightName = Literal["l1", "none", "vsd", "kl", "alpha"]


def l1(scores: Scores, x0: Latent) -> Tensor:
    """1 / mean|x0 - real|, the mean over each sample (DMD, arXiv:2311.18828, eq. 8, without the text's alpha)."""
    return 1 / mean_abs(x0.detach() - scores.real.x0.detach()).clamp(min=scores.floor)


def none(scores: Scores, x0: Latent) -> Tensor:
    """1 (Diff-Instruct, arXiv:2305.18455, in the published code's space)."""
    return pad_like(scores.t * 0 + 1, x0).to(x0.dtype)


def vsd(scores: Scores, x0: Latent) -> Tensor:
    """alpha sigma / (alpha^2 + sigma^2): sigma^2 of a variance-preserving process times the noises' difference.

    ProlificDreamer (Wang et al. 2023, arXiv:2305.16213, eq. 9).
    """
    alpha, sigma = scores.levels
    return pad_like(alpha * sigma / (alpha**2 + sigma**2), x0).to(x0.dtype)


def kl(scores: Scores, x0: Latent) -> Tensor:
    """alpha_t alpha_{t|s} / sigma_t^2: the exact gradient of KL(q_t | p_t) by the sample at time s."""
    alpha, sigma = scores.levels
    return pad_like(alpha * scores.noised.scale / sigma**2, x0).to(x0.dtype)


def alpha(scores: Scores, x0: Latent) -> Tensor:
    """alpha: 1 - t on a flow (SiD-DiT, arXiv:2509.25127)."""
    return pad_like(scores.levels[0], x0).to(x0.dtype)


WEIGHTS: dict[WeightName, Callable[[Scores, Latent], Tensor]] = {
    "l1": l1,
    "none": none,
    "vsd": vsd,
    "kl": kl,
    "alpha": alpha,
}


def weighed(weight: WeightName, scores: Scores, x0: Latent) -> Latent:
    """weight (fake - real): where the generated samples x0 should not go."""
    return WEIGHTS[weight](scores, x0) * (scores.fake.x0 - scores.real.x0)
