"""What a generated sample is worth: scores of its decoded image, to train by or only to watch."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..process import Latent

Scorer = Callable[[Tensor, Sequence[str]], Tensor]
"""Images [B, 3, H, W] in [0, 1], and what each was asked for, -> scores [B], higher is better; differentiable in the
images where an objective takes derivatives of them."""
ALIKE = 1e-8
"""A spread of scores below which they are taken to be all the same."""


class Rewards(nn.Module):
    """Scores of samples of the denoiser's space; a role that trains nothing.

    Args:
        decode: samples [B, ...] -> images [B, 3, H, W] in [-1, 1], with the graph to the samples.
        scorers: name -> what scores; objectives train by these. The memory of those that are modules can be foretold.
        weights: of the scorers; normalised here.
        judges: name -> what scores and is only watched: a reward that is trained by and grows without its judges does
            so at the expense of what they see.

    Attributes:
        figures: means of what was scored last, and what objectives noted beside them.
    """

    shares: Tensor

    def __init__(
        self,
        decode: Callable[[Latent], Tensor],
        scorers: Mapping[str, Scorer],
        weights: Sequence[float],
        judges: Mapping[str, Scorer] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("shares", torch.tensor(weights, dtype=torch.float32) / sum(weights), persistent=False)
        self._parts = (decode, dict(scorers), dict(judges or {}))  # a tuple, so that published weights are no state
        self.figures: dict[str, Tensor] = {}

    def forward(self, x0: Latent, asked: Sequence[str]) -> Tensor:
        """Scores [n, B] in fp32, one row for each reward, with the graph to x0."""
        decode, scorers, judges = self._parts
        images = (decode(x0) + 1) / 2
        scores = {name: score(images, asked).float() for name, score in scorers.items()}
        with torch.no_grad():
            watched = {name: judge(images.detach(), asked) for name, judge in judges.items()}
        for name, value in {**scores, **watched}.items():
            self.note(name, value.detach().mean())
        return torch.stack(list(scores.values()))

    @property
    def published(self) -> Mapping[str, nn.Module]:
        """The scorers and judges that are modules."""
        _, scorers, judges = self._parts
        return {name: scorer for name, scorer in {**scorers, **judges}.items() if isinstance(scorer, nn.Module)}

    def note(self, name: str, value: Tensor) -> None:
        """Keeps a figure of the cycle for the log."""
        self.figures[name] = value.detach()

    def standardised(self, scores: Tensor) -> Tensor:
        """One number per sample [B] of scores [n, B]: the weighted mean of rewards in units of their spread."""
        spread = scores.detach().std(dim=1, correction=0, keepdim=True).clamp(min=ALIKE)
        return self.mixed(scores / spread)

    def mixed(self, values: Tensor) -> Tensor:
        """The weighted mean [B] over rewards of values [n, B]."""
        return (self.shares.to(values)[:, None] * values).sum(dim=0)
