"""Which items of the data a run is trained on, where it is not all of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError
from .source import Source


@dataclass(frozen=True)
class Owned:
    """Items by an assignment that was made of all of them.

    Args:
        file: a safetensors file with `owners`, int64 [n]: the number of the student that each item belongs to.
        owner: whose items are trained on.
    """

    file: Path
    owner: int


@dataclass(frozen=True)
class Selection:
    """Items that have something in common; one of the two.

    Args:
        classes: labels, of which an item has one.
        owned: an assignment, as a run of several students makes it.
    """

    classes: tuple[int, ...] | None = None
    owned: Owned | None = None

    def __post_init__(self) -> None:
        if (self.classes is None) == (self.owned is None):
            raise ValueError("give `classes`, a list of labels")
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 1):
            raise ValueError(f"classes are {list(self.classes)}: name at least one, and each once")

    def numbers(self, source: Source) -> NDArray[np.intp]:
        """The numbers of these items in a source, at least one.

        Raises:
            UserError: there are none, or the source has no classes or not those; an assignment that is damaged or of
                other data.
        """
        mask = self._of_classes(source, self.classes) if self.classes is not None else self._of_owner(len(source))
        if not mask.any():
            raise UserError(f"no item of the data is among those that only={self} names: name others")
        return np.flatnonzero(mask)

    def _of_classes(self, source: Source, classes: tuple[int, ...]) -> NDArray[np.bool_]:
        count = source.num_classes
        if count is None or not all(0 <= label < count for label in classes):
            there = "no classes" if count is None else f"the classes 0 to {count - 1}"
            raise UserError(f"classes {list(classes)} are to be trained on, but the data has {there}: correct them")
        labels = source.without_images(range(len(source))).labels
        assert labels is not None
        found: NDArray[np.bool_] = torch.isin(labels, torch.tensor(classes)).numpy()
        return found

    def _of_owner(self, count: int) -> NDArray[np.bool_]:
        assert self.owned is not None
        try:
            owners = load_file(self.owned.file)["owners"].numpy()
        except (SafetensorError, OSError, KeyError) as error:
            raise UserError(f"{self.owned.file} does not say whose the items of the data are ({error})") from error
        if len(owners) != count:
            raise UserError(
                f"{self.owned.file} says whose {len(owners):,} items are, but the data has {count:,}: put the data "
                "back as it was, or train in another folder (out=...)"
            )
        found: NDArray[np.bool_] = owners == self.owned.owner
        return found
