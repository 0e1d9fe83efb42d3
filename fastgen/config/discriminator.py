"""What tells real samples from generated ones."""

from typing import Literal

from .strict import Strict


class DiscriminatorConfig(Strict):
    """Heads on features of `backbone`, which read the image alone.

    By default they read at the bottleneck, or at the middle of the longest stack of blocks.

    backbone: auto is the fake score, or the real one where there is no other.
    layers: names of the layers that are read, or blocks for every block as in LADD; where not given, those said above.
    heads: trained on the features, or their mean over channels, which has no parameters.
    """

    backbone: Literal["auto", "fake_score", "real_score"] = "auto"
    layers: tuple[str, ...] | Literal["blocks"] | None = None
    heads: Literal["trained", "mean"] = "trained"
