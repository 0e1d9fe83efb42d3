"""What items are asked for by: one caption each, or several of which one is drawn every time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..seeds import hash_of
from .texts import Chained, Some, Texts

Text = Literal["caption", "lines", "tags"]
"""What a text that belongs to an image is: its caption; several of it, one on each line; tags in any order."""
TAG_ORDERS = 8  # orders of an image's tags; few, so that all can be encoded before training


class Captions(Texts):
    """The captions of every item; as a sequence, the first one of each.

    Args:
        texts: of all items, one item's after the other's.
        starts: [n + 1] where those of each item begin and the last one's end; None for one text each.
    """

    def __init__(self, texts: Sequence[str], starts: NDArray[np.int64] | None = None) -> None:
        self.texts, self._starts = texts, starts

    @classmethod
    def read(cls, texts: Iterable[Sequence[str]], text: Text) -> "Captions":
        """Captions from the texts that belong to each item, at least one each.

        Args:
            text: what each of them is.
        """
        split: Callable[[str], Sequence[str]] = {"caption": _one, "lines": _lines, "tags": _orders}[text]
        listed = [[caption for one in some for caption in split(one)] for some in texts]
        flat = tuple(caption for captions in listed for caption in captions)
        if len(flat) == len(listed):
            return cls(flat)
        return cls(flat, np.cumsum([0, *map(len, listed)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.texts) if self._starts is None else len(self._starts) - 1

    def text(self, number: int) -> str:
        return self.texts[number if self._starts is None else int(self._starts[number])]

    def of_item(self, number: int) -> list[str]:
        """All captions of an item."""
        if self._starts is None:
            return [self.texts[number]]
        return [self.texts[place] for place in range(*map(int, self._starts[number : number + 2]))]

    @property
    def several(self) -> bool:
        """Whether some items have more than one."""
        return self._starts is not None

    @property
    def firsts(self) -> Sequence[str]:
        """The first one of each item."""
        return self.texts if self._starts is None else Some(self.texts, self._starts[:-1])

    @classmethod
    def joined(cls, parts: "Sequence[Captions]") -> "Captions":
        """The captions of several sources, whose items are numbered one source after the other."""
        texts = Chained([part.texts for part in parts])
        if not any(part.several for part in parts):
            return cls(texts)
        starts, end = [np.zeros(1, np.int64)], 0
        for part in parts:
            own = np.arange(len(part) + 1) if part._starts is None else part._starts
            starts.append(own[1:] + end)
            end += len(part.texts)
        return cls(texts, np.concatenate(starts))

    @property
    def owners(self) -> NDArray[np.int64]:
        """The item that each text belongs to, [number of texts]."""
        if self._starts is None:
            return np.arange(len(self.texts))
        return np.repeat(np.arange(len(self)), np.diff(self._starts))

    def numbers(self, items: Sequence[int] | NDArray[np.intp], draw: Callable[[int], int]) -> NDArray[np.int64]:
        """The numbers among all texts of what these items are asked for by, [n].

        Args:
            draw: place among `items` -> a large number, of which the remainder chooses among several captions.
        """
        chosen = np.asarray(items, np.int64)
        if self._starts is None:
            return chosen
        counts = self._starts[chosen + 1] - self._starts[chosen]
        several = np.flatnonzero(counts > 1)
        places = np.zeros(len(chosen), np.int64)
        places[several] = [draw(int(place)) % int(counts[place]) for place in several]
        return self._starts[chosen] + places


def _one(text: str) -> Sequence[str]:
    return (text,)


def _lines(text: str) -> Sequence[str]:
    return [line for line in text.split("\n") if line] or [""]


def _orders(text: str) -> Sequence[str]:
    """Tags between commas as they stand, and in other orders."""
    tags = [tag for part in text.replace("\n", ",").split(",") if (tag := part.strip())]
    orders = [tags, *(sorted(tags, key=lambda tag: hash_of("tags", k, tag)) for k in range(1, TAG_ORDERS))]
    return list(dict.fromkeys(", ".join(order) for order in orders))
