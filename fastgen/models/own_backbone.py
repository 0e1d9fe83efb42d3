"""A discriminator whose backbone is its own and learns with its heads (APT, arXiv:2501.08316, section 3.3)."""

from collections.abc import Sequence

import torch

from .contract import RoleNetwork
from .discriminator import Discriminator, HeadKind
from .image_part import Example


class OwnDiscriminator(Discriminator):
    """Heads on layers of a denoiser that is a part of it.

    Args:
        backbone: a denoiser with a network of its own, usually a copy of the teacher's.
        layers, example, heads, width: as of `Discriminator`.

    Attributes:
        unread: names of the parameters that no logit depends on, those behind the last layer.

    Raises:
        UserError: a layer returns nothing of the image.
    """

    def __init__(
        self,
        backbone: RoleNetwork,
        layers: Sequence[str],
        example: Example,
        *,
        heads: HeadKind = "trained",
        width: int = 1,
    ) -> None:
        super().__init__(backbone, layers, example, heads=heads, width=width)
        self.trunk = backbone
        names = [name for name, _ in self.named_parameters() if name.startswith("trunk.")]
        read = [self.get_parameter(name).requires_grad_() for name in names]
        seen = torch.stack([feature.float().sum() for feature in self.features(*example)]).sum()
        slopes = torch.autograd.grad(seen, read, allow_unused=True)
        self.unread = frozenset(name for name, slope in zip(names, slopes, strict=True) if slope is None)
        self.requires_grad_(False)
