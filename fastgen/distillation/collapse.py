"""What pictures' numbers say of a generator: its health in figures, and a collapse in words."""

from collections.abc import Iterator

from torch import Tensor, nn

LEVEL = 2 / 255
"""A grey level of pictures in [-1, 1]."""
SATURATED = 0.98
"""Share of values at the ends of the range above which pictures are said to be saturated."""


def health_of(pictures: Tensor) -> dict[str, float]:
    """What a collapse, a fading or a saturation changes first, of pictures [B, C, H, W] in [-1, 1].

    Returns:
        std: standard deviation of all values; spread: over the seeds, mean of all places (0 of one picture alone);
        saturated: share of the values at the ends of the range.
    """
    spread = float(pictures.std(dim=0).mean()) if len(pictures) > 1 else 0.0
    return {"std": float(pictures.std()), "spread": spread, "saturated": _saturated(pictures)}


def alarms(pictures: Tensor, generator: nn.Module) -> Iterator[str]:
    """Sentences, of a generator that draws what no teacher does.

    Args:
        pictures: of several seeds, [B, C, H, W] in [-1, 1].
        generator: its network.
    """
    if not any(bool(parameter.any()) for parameter in generator.parameters()):
        yield "all weights of the generator are zero: it was never given any, or they were lost"
    if not bool(pictures.isfinite().all()):
        yield "its pictures are not finite"
        return
    if len(pictures) > 1 and float(pictures.std(dim=0).max()) < LEVEL:
        yield f"its {len(pictures)} pictures of different seeds are equal: it has collapsed"
    elif float(pictures.flatten(1).std(dim=1).max()) < LEVEL:
        yield "each of its pictures has one colour: it has collapsed"
    share = _saturated(pictures)
    if share > SATURATED:
        yield f"{share:.0%} of its pictures' values are at the ends of the range: it is saturated"


def _saturated(pictures: Tensor) -> float:
    return float((pictures.abs() > 1 - LEVEL / 2).float().mean())
