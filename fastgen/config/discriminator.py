"""What tells real samples from generated ones."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ..objectives import Objective, roles_of
from ..unread import names_of, refuse_unread
from .strict import Strict


class DiscriminatorConfig(Strict):
    """Heads on features of `backbone`, which read the image alone, or of decoded samples on those of `network`.

    By default they read at the bottleneck, or at the middle of the longest stack of blocks.

    backbone: auto is the fake score, or the real one where there is no other, or own where there is neither; own is a
        copy of the teacher's network that learns with the heads.
    layers: names of the layers that are read, or blocks for every block as in LADD; where not given, those said above.
    heads: trained on the features, or their mean over channels, which has no parameters.
    network: under gan.pixels, folder of a transformers vision model such as DINOv2 or CLIP, or its id on the hub where
        that is in the cache.
    blocks: numbers of the blocks of `network` that are read, from 1; where not given, four of them up to the last.
    """

    backbone: Literal["auto", "fake_score", "real_score", "own"] = "auto"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["blocks"] | None = None
    heads: Literal["trained", "mean"] = "trained"
    network: Annotated[str, Field(min_length=1)] | None = None
    blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None


def reader_of(spec: DiscriminatorConfig, denoisers: Collection[str]) -> str:
    """The backbone's role among the denoisers that there are, or own."""
    if spec.backbone != "auto":
        return spec.backbone
    return next((name for name in ("fake_score", "real_score") if name in denoisers), "own")


def check_judged(stage: str, objective: Objective, spec: DiscriminatorConfig) -> None:
    """Raises ValueError for settings of a discriminator that is not the one which the objective has, if any."""
    needs = objective.needs
    if "discriminator" not in roles_of(objective):
        why = f"the objective of {stage} trains no discriminator"
        remedy = "choose one with a GAN term and objective.gan above 0, or set discriminator={}"
        refuse_unread(spec, *names_of(spec), why=why, remedy=remedy, within="discriminator.")
    if needs.pixels and spec.network is None:
        raise ValueError(
            f"{stage} judges decoded samples (gan.pixels) and no vision model is named: set discriminator.network to a "
            "folder of DINOv2, CLIP or the like"
        )
    if needs.head_derivative and not needs.pixels and spec.heads == "mean":
        raise ValueError(
            f"{stage} holds the slope of heads small (gan.feature_r1), and discriminator.heads=mean have a slope that "
            "nothing trains: leave one of them out"
        )
    other = ("backbone", "layers", "heads") if needs.pixels else ("network", "blocks")
    why = f"{stage} judges {'decoded' if needs.pixels else 'noisy'} samples"
    remedy = f"set objective.gan.pixels={'false' if needs.pixels else 'true'}"
    refuse_unread(spec, *other, why=why, remedy=remedy, within="discriminator.")
