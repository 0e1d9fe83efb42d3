r"""f-divergences D_f = E_fake[f(r)] by their weight h on the score difference, r = p_real / p_fake.

    grad D_f = E[h(r) alpha (s_fake - s_real) J],    h(r) = r^2 f''(r)

(Xu et al. 2025, f-distill, arXiv:2502.15681, theorem 1). Rising weights cover modes, falling ones seek them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

DivergenceName = Literal[
    "reverse_kl",
    "forward_kl",
    "jeffreys",
    "jensen_shannon",
    "softened_reverse_kl",
    "squared_hellinger",
    "pearson",
    "neyman",
]


@dataclass(frozen=True)
class Divergence:
    """f and h of the log ratio; `slope` of it is r h'(r)."""

    f: Callable[[Tensor], Tensor]
    h: Callable[[Tensor], Tensor]

    def slope(self, log_ratio: Tensor) -> Tensor:
        """dh / d log r, differentiable."""
        ones = torch.ones_like(log_ratio)
        slope: Tensor = torch.func.jvp(self.h, (log_ratio,), (ones,))[1]
        return slope


DIVERGENCES: dict[DivergenceName, Divergence] = {
    "reverse_kl": Divergence(lambda u: -u, lambda u: u * 0 + 1),
    "forward_kl": Divergence(lambda u: u.exp() * u, lambda u: u.exp()),
    "jeffreys": Divergence(lambda u: (u.exp() - 1) * u, lambda u: 1 + u.exp()),
    "jensen_shannon": Divergence(
        lambda u: u.exp() * u - (1 + u.exp()) * ((1 + u.exp()) / 2).log(), lambda u: torch.sigmoid(u)
    ),
    "softened_reverse_kl": Divergence(lambda u: (1 + u.exp()) * ((1 + u.exp()).log() - u), lambda u: torch.sigmoid(-u)),
    "squared_hellinger": Divergence(lambda u: (1 - (u / 2).exp()).square(), lambda u: (u / 2).exp() / 2),
    "pearson": Divergence(lambda u: (u.exp() - 1).square(), lambda u: 2 * (2 * u).exp()),
    "neyman": Divergence(lambda u: (1 - u.exp()).square() * (-u).exp(), lambda u: 2 * (-u).exp()),
}
"""Jensen-Shannon is KL(p|m) + KL(q|m), twice the usual one; softened reverse KL is a bounded mode-seeking one."""


def check_clip(clip: tuple[float, float]) -> None:
    """Raises ValueError for bounds that no ratio lies between, or whose logarithm is infinite."""
    if not 0 < clip[0] < clip[1]:
        raise ValueError(
            f"clip is {clip[0]:g}, {clip[1]:g}: it bounds a density ratio, need 0 < low < high, as 0.1, 20"
        )
