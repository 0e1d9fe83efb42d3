"""The endless shuffled stream of a source's items, addressed by position."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SilentError
from ..seeds import hash_of
from ..standing import standing
from .order import Kept, Numbers, Stream, order_of
from .pixels import to_images
from .source import Items, Source
from .workers import AHEAD, Found, Workers, decodes

REMEMBERED = 40  # ranges, among which a pattern of jumps is looked for


class Loader:
    """Items of `source` by their position in an endless stream: epoch after epoch, each shuffled anew.

    Which item stands at a position, whether it is mirrored, and which of its captions it is asked for by, follow from
    the seed and the position alone, and for a source with buckets from the size of a batch.
    So a resumed run continues with the position it stopped at, and N processes split the stream by taking
    every N-th range. The range that is expected next is read by a thread in the meantime: the one that lies as far
    ahead as it did when the ranges before lay as they do now. With workers, several ranges are decoded ahead.

    Args:
        source: data source that gives the items; only one thread at a time asks it.
        seed: seed of the order, of the mirroring and of what is drawn among captions.
        batch: positions that have images of one shape, counted from the first.
        flip: mirror each image left to right with probability one half.
        only: numbers of the items that are trained on; None for all.
        shuffle: False keeps the order of the source.
        dropout: probability that an item is asked for by the empty prompt.
        images: False leaves images out, which are then not even decoded.
        patience_s: seconds that a range is waited for.
        workers: processes that decode images, of sources that leave that to others; 0 leaves it to threads.
        device: that images go to; for a GPU they are laid ready in pinned memory.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        batch: int = 1,
        flip: bool = False,
        only: Numbers | None = None,
        shuffle: bool = True,
        dropout: float = 0.0,
        images: bool = True,
        patience_s: float = 300.0,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self._source = source
        self._seed = seed
        self._flip = flip
        self._dropout = dropout
        self._images = images
        self._patience_s = patience_s
        self._stream = Stream(order_of(source, seed, batch, only) if shuffle else Kept(len(source)))
        self._captions = source.captions
        self._gpu = _number_of(device)
        self._thread = ThreadPoolExecutor(1, "fastgen-data", initializer=_begin, initargs=(self._gpu,))
        self._workers = Workers(source, workers) if workers and images and decodes(source) else None
        self._depth = 1 if self._workers is None else AHEAD * self._workers.count
        self._ahead: deque[_Ahead] = deque()
        self._starts: deque[int] = deque(maxlen=REMEMBERED)
        self.waited = 0.0  # seconds so far that a range was not there yet when it was asked for

    def take(self, position: int, count: int) -> Items:
        """The items at position .. position + count - 1 of the stream.

        Raises:
            UserError: one of these items cannot be read.
            SilentError: the source does not answer.
            ValueError: a position below 0, or no items.
        """
        if position < 0 or count < 1:
            raise ValueError(f"cannot take {count} items at position {position}")
        wanted = range(position, position + count)
        items = self._answer(self._claim(wanted), wanted)
        self._look_ahead(wanted)
        return items

    def _answer(self, items: "Future[Items]", wanted: range) -> Items:
        """The items of a range, once they are there."""
        start = time.perf_counter()
        done, _ = wait([items], timeout=self._patience_s)
        self.waited += time.perf_counter() - start
        if not done:
            raise SilentError(
                f"the data source {type(self._source).__name__} has given nothing for {self._patience_s:g} s, asked "
                f"for the positions {wanted.start} to {wanted.stop - 1} of its stream ({standing('fastgen-d')}): look "
                "after it and the disk or network that it reads, or let it take longer with timeouts.data"
            )
        return items.result()

    def drawn(self, count: int) -> NDArray[np.bool_]:
        """Which captions of the source are asked for at the first `count` positions, of all its texts in their order.

        One more place stands last for the empty prompt, where it is drawn in the place of a caption.
        """
        assert self._captions is not None
        seen = np.zeros(len(self._captions.texts) + 1, bool)
        step = self._stream.length
        for start in range(0, count, step):
            if seen[:-1].all() and (seen[-1] or not self._dropout):
                break
            positions = range(start, min(start + step, count))
            seen[self._asked(self._stream.at(positions), positions)] = True
        return seen

    def pictured(self, count: int) -> list[tuple[int, bool]]:
        """The images that are read at the first `count` positions, each once: their numbers, and whether mirrored."""
        seen = np.zeros((len(self._source), 2), bool)
        step = self._stream.length
        for start in range(0, count, step):
            if seen[:, : 1 + self._flip].all():
                break
            positions = range(start, min(start + step, count))
            seen[self._stream.at(positions), np.array(self.mirrored(positions), np.intp)] = True
        return [(int(number), bool(mirrored)) for number, mirrored in np.argwhere(seen)]

    def numbers(self, positions: Sequence[int]) -> list[int]:
        """The numbers in the source of what stands at these positions."""
        return [int(number) for number in self._stream.at(positions)]

    def mirrored(self, positions: Sequence[int]) -> list[bool]:
        """Whether the image at each of these positions is mirrored."""
        return [self._flip and hash_of("flip", self._seed, position) % 2 == 1 for position in positions]

    def frames(self, numbers: Sequence[int]) -> Tensor | None:
        """Sizes and crops [B, 4] of these items' images, see `Source.frames`."""
        return self._source.frames(numbers) if decodes(self._source) else None

    def names(self, numbers: Sequence[int]) -> list[str]:
        """What messages call these items."""
        return [self._source.named(number) for number in numbers]

    def again(self, positions: Sequence[int], *, images: bool | None = None) -> Items:
        """The items at these positions, once more; what is expected next stays what it was.

        Args:
            images: whether they are read; None reads them as `take` does.
        """
        return self._thread.submit(self._load, positions, self._images if images is None else images).result()

    def _claim(self, wanted: range) -> "Future[Items]":
        while self._ahead:
            ahead = self._ahead.popleft()
            if ahead.positions == wanted:
                return ahead.items
            ahead.items.cancel()
        return self._coming(wanted)

    def _look_ahead(self, taken: range) -> None:
        self._starts.append(taken.start)
        if self._ahead and self._ahead[0].positions != _next(self._starts, len(taken)):
            self._forget()
        starts = [*self._starts, *(ahead.positions.start for ahead in self._ahead)]
        while len(self._ahead) < self._depth:
            following = _next(starts[-REMEMBERED:], len(taken))
            if following.start < 0:
                return
            self._ahead.append(_Ahead(following, self._coming(following)))
            starts.append(following.start)

    def _forget(self) -> None:
        """Drops all that was read ahead."""
        while self._ahead:
            self._ahead.popleft().items.cancel()

    def _coming(self, positions: range) -> "Future[Items]":
        """The items of a range, in the making."""
        if self._workers is None:
            return self._thread.submit(self._load, positions, self._images)
        images = self._workers.submit(self.numbers(positions))
        return self._thread.submit(self._put_together, positions, images)

    def _load(self, positions: Sequence[int], images: bool) -> Items:
        numbers = self.numbers(positions)
        items = (self._source.items if images else self._source.without_images)(numbers)
        return self._finished(items, numbers, positions)

    def _put_together(self, positions: Sequence[int], images: "Future[Found]") -> Items:
        """Items whose images a process decodes."""
        pixels, found = Workers.result(images)
        items = replace(self._source.without_images(found), images=to_images(pixels), numbers=tuple(found))
        return self._finished(items, found, positions)

    def _finished(self, items: Items, numbers: Sequence[int], positions: Sequence[int]) -> Items:
        items = self._told(items, numbers, positions)
        items = self._mirrored(items, positions) if self._flip else items
        if self._gpu is None or items.images is None:
            return items
        return replace(items, images=items.images.pin_memory())

    def _told(self, items: Items, numbers: Sequence[int], positions: Sequence[int]) -> Items:
        """The same with the captions that are drawn at these positions."""
        if self._captions is None or not (self._captions.several or self._dropout):
            return items
        texts = self._captions.texts
        asked = self._asked(np.array(items.numbers or numbers), positions)
        return replace(items, prompts=tuple("" if n == len(texts) else texts[n] for n in asked.tolist()))

    def _asked(self, numbers: Numbers, positions: Sequence[int]) -> NDArray[np.int64]:
        """The numbers of the captions that these items are asked for by at these positions, see `drawn`."""
        captions, seed = self._captions, self._seed
        assert captions is not None
        asked = captions.numbers(numbers, lambda place: hash_of("caption", seed, positions[place]))
        if self._dropout:
            below = int(self._dropout * 2**64)
            dropped = [hash_of("dropout", seed, position) < below for position in positions]
            asked = np.where(dropped, len(captions.texts), asked)
        return asked

    def _mirrored(self, items: Items, positions: Sequence[int]) -> Items:
        if items.images is None:
            return items
        chosen = torch.tensor(self.mirrored(positions))
        return replace(items, images=items.images.flip(-1).where(chosen[:, None, None, None], items.images))


def _number_of(device: torch.device | None) -> int | None:
    """The index of a GPU; None for any other device."""
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _begin(gpu: int | None) -> None:
    """Prepares the thread that reads. An OpenMP team of its own would halve the speed of the main thread's on a CPU.

    Args:
        gpu: for which memory is pinned; a thread's own is the first one, where another process may be.
    """
    torch.set_num_threads(1)
    if gpu is not None:
        torch.cuda.set_device(gpu)


@dataclass(frozen=True)
class _Ahead:
    """A range of positions that is expected next, and its items in the making."""

    positions: range
    items: "Future[Items]"


def _next(starts: Sequence[int], count: int) -> range:
    """The range of `count` positions that is expected after those that began there."""
    jumps = [after - before for before, after in pairwise(starts)]
    start = starts[-1] + _following(jumps, otherwise=count)
    return range(start, start + count)


def _following(jumps: Sequence[int], *, otherwise: int) -> int:
    """What followed the last time that the jumps before were these; of several such times, where most of them were."""
    best, longest = jumps[-1] if jumps else otherwise, 0
    for place in range(len(jumps) - 1, 0, -1):
        alike = 0
        while alike < place and jumps[place - 1 - alike] == jumps[-1 - alike]:
            alike += 1
        if alike > longest:
            best, longest = jumps[place], alike
    return best
