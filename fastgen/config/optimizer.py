"""The optimizer of a role."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .strict import Strict

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A share below one."""


class OptimConfig(Strict):
    """The optimizer of one role.

    name: adamw; adamw8bit keeps moments in 8 bits; muon makes the updates of hidden matrices orthogonal, and steps all
        else by adamw.
    lr: learning rate after the warm-up.
    betas: decays of AdamW's first and second moments; a first one of 0 keeps none.
    momentum: decay of Muon's.
    eps: what is added to the root of the second moment.
    weight_decay: share of the weights that an update takes off, in units of the learning rate.
    clip: largest norm of the role's gradient.
    warmup: updates over which the learning rate rises from zero.
    schedule: course of the learning rate afterwards; linear and cosine end at zero.
    frozen: regular expressions; parameters of whose names one fits a part stay as they are.
    """

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    momentum: Fraction = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = 10.0
    warmup: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    frozen: tuple[str, ...] = ()


def checked(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings of one role's optimizer, beside which others hold, once they are known to fit."""
    OptimConfig.model_validate(raw)
    return raw
