"""What an objective has to remember beside its networks: small modules among the roles, checkpointed with them."""

import torch
from torch import Tensor, nn

from ..process import Time

BINS = 10


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
        """The ratios [B] by their bin's mean; `rate` of the old mean is kept, 0 takes the batch's own."""
        bins = (t * BINS).long().clamp(max=BINS - 1).to(ratio.device)
        for i in bins.unique().tolist():
            seen = ratio[bins == i].mean()
            self.means[i] = rate * self.means[i] + (1 - rate) * seen.to(self.means)
        return ratio / self.means.to(ratio)[bins]


STATES: dict[str, type[nn.Module]] = {"ratio_means": RatioMeans}
"""State modules by the name that an objective's `needs` has for them."""
