"""What other libraries repeat with every pipeline that they load is said once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

ROOTS = ("diffusers", "transformers")
"""Loggers with handlers of their own, which these libraries make when they are imported."""


class Once(logging.Filter):
    """Lets a text through the first time; one for each handler."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new."""
        text = (record.name, record.getMessage())
        fresh = text not in self._seen
        self._seen.add(text)
        return fresh


@contextmanager
def said_once() -> Iterator[None]:
    """Within, nothing that Diffusers or Transformers log is shown twice; they must have been imported."""
    filtered = [(handler, Once()) for root in ROOTS for handler in logging.getLogger(root).handlers]
    for handler, once in filtered:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filtered:
            handler.removeFilter(once)
