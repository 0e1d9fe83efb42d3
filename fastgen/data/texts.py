"""Texts that are not held one by one: read, or joined, when they are asked for."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Texts by their numbers."""

    @abstractmethod
    def text(self, number: int) -> str:
        """One of them; `number` lies in 0 .. len - 1."""

    @overload
    def __getitem__(self, item: int) -> str: ...

    @overload
    def __getitem__(self, item: slice) -> Sequence[str]: ...

    def __getitem__(self, item: int | slice) -> str | Sequence[str]:
        if isinstance(item, slice):
            return [self.text(number) for number in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"there is no text {item} among {len(self):,}")
        return self.text(int(item) % len(self))


class Chained(Texts):
    """Texts of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts, self._ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def text(self, number: int) -> str:
        place = bisect_right(self._ends, number)
        return self._parts[place][number - (self._ends[place - 1] if place else 0)]


class Reworded(Texts):
    """Texts, each put into the same other words in the place of "{}"."""

    def __init__(self, texts: Sequence[str], words: str) -> None:
        self._texts, self._words = texts, words

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, number: int) -> str:
        return self._words.replace("{}", self._texts[number])


def instead(text: str, others: Sequence[tuple[str, str]]) -> str:
    """A text with others words wherever some stand: pairs of what is replaced and what comes there, in turn."""
    for one, other in others:
        text = text.replace(one, other)
    return text


class Instead(Texts):
    """The texts that `instead` changes, as it changes them; all others are left out."""

    def __init__(self, texts: Sequence[str], others: Sequence[tuple[str, str]]) -> None:
        self._texts, self._others = texts, others
        self._numbers = [number for number, text in enumerate(texts) if instead(text, others) != text]

    def __len__(self) -> int:
        return len(self._numbers)

    def text(self, number: int) -> str:
        return instead(self._texts[self._numbers[number]], self._others)


class Some(Texts):
    """Some of many texts."""

    def __init__(self, texts: Sequence[str], numbers: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        self._texts, self._numbers = texts, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def text(self, number: int) -> str:
        return self._texts[int(self._numbers[number])]
