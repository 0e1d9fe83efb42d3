"""What an objective has to remember beside its networks: small modules among the roles, checkpointed with them."""

import torch
from torch import Tensor, nn

from ..process import Time

BINS = 10
FEATURES = 32


class RatioMeans(nn.Module):
    """Running means of a density ratio in ten bins of process time (f-distill, arXiv:2502.15681, section 4.2).

    Each process of a parallel run keeps its own.
    """

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.ones(BINS))

    @torch.no_grad()
    def normalise(self, ratio: Tensor, t: Time, *, rate: float) -> Tensor:
        """The ratios [B] by their bin's mean; `rate` of the old mean is kept, 0 takes the batch's own.

        A sample alone in its bin becomes 1: small micro-batches tell little of the ratio unless means are kept.
        """
        bins = (t * BINS).long().clamp(max=BINS - 1).to(ratio.device)
        inside = bins == torch.arange(BINS, device=bins.device)[:, None]
        seen = torch.where(inside, ratio, 0).sum(dim=1) / inside.sum(dim=1)
        moved = rate * self.means + (1 - rate) * seen.to(self.means)
        self.means.copy_(torch.where(inside.any(dim=1), moved, self.means))
        return ratio / self.means.to(ratio)[bins]


class LogVariance(nn.Module):
    """A trained log-variance of a loss at each time, zero at first (sCM, arXiv:2410.11081, after EDM2).

    A linear layer on Fourier features of process time, trained beside the generator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2 * FEATURES, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Time) -> Tensor:
        """[B] in the dtype of its parameters."""
        angles = torch.pi * t[:, None] * torch.arange(FEATURES, dtype=torch.float64, device=t.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        logs: Tensor = self.out(waves.to(self.out.weight))
        return logs[:, 0]


STATES: dict[str, type[nn.Module]] = {"ratio_means": RatioMeans, "log_variance": LogVariance}
"""State modules by the name of their role, and of the field of `Needs` that asks for them."""
