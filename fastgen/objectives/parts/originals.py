"""What generated samples are to be taken for: where an objective has its real rows from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ...models.roles import Roles
from ...process import Latent, Time
from .base import Batch, Landing
from .needs import Needs


class Rows(NamedTuple):
    """Samples x [B, ...] at times s [B], clean where that is None; constants."""

    x: Latent
    s: Time | None = None


@dataclass(frozen=True)
class Originals:
    """Where the rows come from that an adversary holds generated samples against.

    Args:
        rows: (roles, batch, landing) -> what that landing is to be taken for, row by row; asked only where it is read.
        needs: what they ask for.
    """

    rows: Callable[[Roles, Batch, Landing], Rows]
    needs: Needs


DATA = Originals(lambda _roles, batch, _landing: Rows(batch.x0), Needs(images=True))
"""Real samples."""
