"""What pictures' numbers say of a generator: its health in figures, and a collapse in words."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

LEVEL = 2 / 255
"""A grey level of pictures in [-1, 1]."""
SATURATED = 0.98
"""Share of values at the ends of the range above which pictures are said to be saturated."""
NARROW = 0.1
"""Share of the teacher's spread below which a generator is said to draw much less."""


def health_of(pictures: Tensor) -> dict[str, float]:
    """What a collapse, a fading or a saturation changes first, of pictures [B, C, H, W] in [-1, 1].

    Returns:
        std: standard deviation of all values; spread: over the seeds, mean of all places (0 of one picture alone);
        saturated: share of the values at the ends of the range.
    """
    return {"std": float(pictures.std()), "spread": _spread(pictures), "saturated": _saturated(pictures)}


def alarms(
    pictures: Tensor, generator: nn.Module, *, captions: Sequence[str] = (), usual: float | None = None
) -> Iterator[str]:
    """Sentences about a generator whose pictures have collapsed, narrowed or saturated; none if they are healthy.

    Args:
        pictures: of several seeds, [B, C, H, W] in [-1, 1].
        generator: its network.
        captions: what each picture was asked for; those of one caption are to differ as well.
        usual: spread of the teacher's pictures; None compares with none.
    """
    if not any(bool(parameter.any()) for parameter in generator.parameters()):
        yield "all weights of the generator are zero: it was never given any, or they were lost"
    if not bool(pictures.isfinite().all()):
        yield "its pictures are not finite"
        return
    if (alike := next(_alike(pictures, captions), None)) is not None:
        yield alike
    elif usual is not None and (spread := _spread(pictures)) < NARROW * usual:
        yield f"its pictures differ by {spread:.3f}, the teacher's by {usual:.3f}: it draws much less than the teacher"
    share = _saturated(pictures)
    if share > SATURATED:
        yield f"{share:.0%} of its pictures' values are at the ends of the range: it is saturated"


def _alike(pictures: Tensor, captions: Sequence[str]) -> Iterator[str]:
    """Sentences about pictures that should differ and do not, the most serious first."""
    if _equal(pictures):
        yield f"its {len(pictures)} pictures of different seeds are equal: it has collapsed"
    if float(pictures.flatten(1).std(dim=1).max()) < LEVEL:
        yield "each of its pictures has one colour: it has collapsed"
    for caption in dict.fromkeys(captions):
        own = pictures[torch.tensor([one == caption for one in captions])]
        if _equal(own):
            yield f"its {len(own)} pictures of {caption!r:.60} are equal: it has collapsed there"


def _equal(pictures: Tensor) -> bool:
    return len(pictures) > 1 and float(pictures.std(dim=0).max()) < LEVEL


def _spread(pictures: Tensor) -> float:
    return float(pictures.std(dim=0).mean()) if len(pictures) > 1 else 0.0


def _saturated(pictures: Tensor) -> float:
    return float((pictures.abs() > 1 - LEVEL / 2).float().mean())
