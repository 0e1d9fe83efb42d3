"""Laws of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): which score is guided, and how strongly.

The two predictions themselves are combined by `fastgen.models.calls.guided`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, Field

from .base import shorthand


@dataclass(frozen=True)
class Scales:
    """Weights w of u + w (c - u): 1 is the conditional prediction, 0 the unconditional one, below 0 leads away.

    Args:
        real, fake: weights of the two scores when they are compared.
        learned: weight of the fake score's prediction that its training fits to the generated samples.
    """

    real: float
    fake: float
    learned: float


@runtime_checkable
class GuidanceLaw(Protocol):
    """What an objective asks of its guidance."""

    @property
    def null(self) -> bool:
        """Whether an unconditional prediction is ever made."""
        ...

    @property
    def dropout(self) -> float:
        """Share of the fake score's training rows that see no condition, so that it has an unconditional mode."""
        ...

    def drawn(self, rng: torch.Generator) -> Scales:
        """The scales of one batch; `rng` is the stream that all ranks share."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The real score alone is guided.

    Args:
        scale: w; 1 guides nothing.
    """

    scale: float = 1.0
    law: Literal["fixed"] = "fixed"

    @property
    def null(self) -> bool:
        return self.scale != 1

    @property
    def dropout(self) -> float:
        return 0.0

    def drawn(self, rng: torch.Generator) -> Scales:
        return Scales(self.scale, 1.0, 1.0)


@dataclass(frozen=True)
class Shared:
    """One scale for both scores, uniform in [low, high] for each batch.

    That is SwiftBrush where low = high (Nguyen & Tran 2023, arXiv:2312.05239), otherwise SNOOPI's PG-SB (Nguyen et al.
    2024, arXiv:2412.02687).

    Args:
        low, high: between which w is drawn.
        dropout: share of the fake score's training rows that see no condition.
    """

    low: float
    high: float
    dropout: float = 0.1
    law: Literal["shared"] = "shared"

    def __post_init__(self) -> None:
        check_share(self.dropout)
        if self.low > self.high:
            raise ValueError(f"scales are drawn from [{self.low:g}, {self.high:g}]: need low <= high")

    @property
    def null(self) -> bool:
        return True

    def drawn(self, rng: torch.Generator) -> Scales:
        u = torch.rand((), generator=rng, device=rng.device, dtype=torch.float64).item()
        scale = self.low + (self.high - self.low) * u
        return Scales(scale, scale, 1.0)


@dataclass(frozen=True)
class LongShort:
    """The same scale for both scores and for what the fake score is trained on.

    SiD-LSG (Zhou et al. 2024, arXiv:2406.01561).

    Args:
        scale: w of all three.
        dropout: share of the fake score's training rows that see no condition.
    """

    scale: float = 2.0
    dropout: float = 0.1
    law: Literal["long_short"] = "long_short"

    def __post_init__(self) -> None:
        check_share(self.dropout)

    @property
    def null(self) -> bool:
        return self.scale != 1

    def drawn(self, rng: torch.Generator) -> Scales:
        return Scales(self.scale, self.scale, self.scale)


@dataclass(frozen=True)
class Zero:
    """No guidance of the real score, and a fake score without condition.

    Zero-CFG (Zhou et al. 2025, arXiv:2505.12674): s_fake^u - s_real^c holds the guidance s_real^c - s_real^u
    implicitly.
    """

    law: Literal["zero"] = "zero"

    @property
    def null(self) -> bool:
        return True

    @property
    def dropout(self) -> float:
        return 0.0

    def drawn(self, rng: torch.Generator) -> Scales:
        return Scales(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Anti:
    """No guidance of the real score, and a fake score led away from the condition (Anti-CFG, arXiv:2505.12674).

    The paper's scale is not known to us; the fake score is trained plainly here, since one that is trained on its
    own guided prediction would undo the scale.

    Args:
        scale: w of the fake score, below 0.
        dropout: share of the fake score's training rows that see no condition.
    """

    scale: float = -1.0
    dropout: float = 0.1
    law: Literal["anti"] = "anti"

    def __post_init__(self) -> None:
        check_share(self.dropout)
        if self.scale >= 0:
            raise ValueError(f"anti-guidance leads away from the condition: need scale < 0, got {self.scale}")

    @property
    def null(self) -> bool:
        return True

    def drawn(self, rng: torch.Generator) -> Scales:
        return Scales(1.0, self.scale, 1.0)


@dataclass(frozen=True)
class Entropic:
    """A guided real score beside a fake score that half forgets its condition (ESD, arXiv:2401.00909).

    The fake prediction is entropy u + (1 - entropy) c: samples of all conditions together are to have a large entropy.
    Between densities that is KL(q_c | p_c), averaged over the conditions c, less `entropy` times the mutual information
    of sample and condition. At entropy 0 it is the fixed law, at 1 the fake score has no condition.

    Args:
        scale: w of the real score.
        entropy: weight of the joint entropy, in [0, 1]; the authors' scale of the fake score is 1 - entropy.
        dropout: share of the fake score's training rows that see no condition.
    """

    scale: float = 7.5
    entropy: float = 0.5
    dropout: float = 0.1
    law: Literal["entropic"] = "entropic"

    def __post_init__(self) -> None:
        check_share(self.dropout)
        if not 0 <= self.entropy <= 1:
            raise ValueError(f"entropy is {self.entropy:g}: a weight between two entropies lies in [0, 1]")

    @property
    def null(self) -> bool:
        return True

    def drawn(self, rng: torch.Generator) -> Scales:
        return Scales(self.scale, 1 - self.entropy, 1.0)


def check_share(dropout: float) -> None:
    """Raises ValueError for a share of rows that is none."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout:g}: a share of rows lies in [0, 1)")


AnyGuidance = Annotated[
    Annotated[Fixed | Shared | LongShort | Zero | Anti | Entropic, Field(discriminator="law")],
    BeforeValidator(lambda raw: shorthand(raw, Fixed)),
]
"""A guidance law as a config names it; a number is the fixed one."""
