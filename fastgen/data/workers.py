"""Processes that decode images, ahead of the training that asks for them."""

import os
import signal
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context, parent_process
from threading import Thread, Timer
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ..errors import UserError
from .mixture import Mixture, sources_in
from .source import Source

AHEAD = 2  # ranges of positions on their way for each process
_LAST_S = 30.0  # that a process which is told to end still decodes: a job's signals reach all of its processes

_ENDED = (
    "a process that decodes images was ended, perhaps for lack of memory: give fewer workers, smaller cache_gib, or "
    "workers=0, which decodes in threads"
)

Found = tuple[Tensor, list[int]]


class Decodes(Source, Protocol):
    """A source whose images can be decoded in another process, by a copy of the source."""

    def pixels(self, indices: Sequence[int]) -> Found:
        """uint8 [B, C, H, W] of the items at `indices`, and which items they are in the end."""


def decodes(source: Source) -> TypeGuard[Decodes]:
    """Whether processes can decode a source's images: those of a stream come one window after the other."""
    return all(hasattr(part, "pixels") and part.sequential is None for part in sources_in(source))


class Workers:
    """Processes with a copy of a source each; they end with whoever asks them.

    A copy keeps decoded images in memory as its source would, in its share of that memory, and counts images that it
    cannot read by itself.

    Args:
        source: whose images are decoded.
        count: of processes.
    """

    def __init__(self, source: Decodes, count: int) -> None:
        self.count = count
        context = get_context("forkserver")  # a fork would inherit the locks of threads, and a GPU
        context.set_forkserver_preload(["fastgen.data"])
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(_fresh(source, share=count),)
        )

    def submit(self, numbers: Sequence[int]) -> "Future[Found]":
        """The images of these items, in the making.

        Raises:
            UserError: a process was ended.
        """
        try:
            return self._pool.submit(_pixels, list(numbers))
        except BrokenExecutor as error:
            raise UserError(_ENDED) from error

    @staticmethod
    def result(images: "Future[Found]") -> Found:
        """Images that were submitted, once they are there.

        Raises:
            UserError: one cannot be read, or a process was ended.
        """
        try:
            return images.result()
        except BrokenExecutor as error:
            raise UserError(_ENDED) from error


def _fresh(source: Any, *, share: int) -> Any:
    """A source by its settings alone, with its part of the memory for decoded images."""
    if isinstance(source, Mixture):
        return replace(source, parts=tuple(_fresh(part, share=share) for part in source.parts))
    return replace(source, cache_gib=source.cache_gib / share)


_source: Any = None  # of a process that decodes


def _begin(source: Decodes) -> None:
    global _source
    _source = source
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: Timer(_LAST_S, os._exit, (0,)).start())
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed says nothing to those that wait for it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _pixels(numbers: list[int]) -> Found:
    found: Found = _source.pixels(numbers)
    return found
