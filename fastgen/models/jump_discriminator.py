"""A discriminator of jumps: it reads where one began beside where it ended (SDXL-Lightning, arXiv:2402.13929)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..process import Latent, Time
from .conditioning import Conditioning
from .discriminator import Discriminator, FeatureDiscriminator, side_by_side


class JumpDiscriminator(FeatureDiscriminator):
    """(x_s, s, cond) -> logits [B, k] of the ends of jumps from one start; large means real (section 4.2).

    The backbone sees start and end by themselves, each at its own time, and a head reads both, channel by channel. The
    start is looked at once for all ends that are judged together, which are whole batches one after the other.

    Args:
        discriminator: a discriminator whose heads read two features side by side; it is no part of this module.
        x_t: where the jumps begin, [B, ...].
        t: their times [B].
        cond: conditioning of their B rows.
    """

    def __init__(self, discriminator: Discriminator, x_t: Latent, t: Time, cond: Conditioning) -> None:
        super().__init__()
        self._discriminator = (discriminator,)  # a tuple, so that it is not registered as a submodule
        self._began = discriminator.features(x_t, t, cond)

    def features(self, x_t: Latent, t: Time, cond: Conditioning) -> list[Tensor]:
        """What is seen of the ends, and of the starts beside it: twice the channels of either."""
        ended = self._discriminator[0].features(x_t, t, cond)
        return [
            side_by_side([end, torch.cat([start] * (len(end) // len(start)))])
            for end, start in zip(ended, self._began, strict=True)
        ]

    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        return self._discriminator[0].judged(features, cond)
