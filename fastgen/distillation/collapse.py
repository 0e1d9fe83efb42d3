"""What a picture's numbers say of a generator that has collapsed, in words."""

from collections.abc import Iterator

from torch import Tensor, nn

LEVEL = 2 / 255
"""A grey level of pictures in [-1, 1]."""
SATURATED = 0.98
"""Share of values at the ends of the range above which pictures are said to be saturated."""


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
    share = float((pictures.abs() > 1 - LEVEL / 2).float().mean())
    if share > SATURATED:
        yield f"{share:.0%} of its pictures' values are at the ends of the range: it is saturated"
