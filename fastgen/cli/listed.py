"""What `fastgen list` shows: rows of cells, a row for each name."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any

from ..data import SOURCE_KINDS
from ..errors import UserError
from ..objectives import OBJECTIVE_KINDS
from ..plugins import Kinds

Row = tuple[str, ...]


def objectives() -> Iterator[Row]:
    """Name, needs and paper."""
    return _rows(OBJECTIVE_KINDS, lambda kind: (_needs(kind), paper(kind)))


def sources() -> Iterator[Row]:
    """Name, the settings that have to be given, and what it is."""
    return _rows(SOURCE_KINDS, lambda kind: (_required(kind), _first_line(kind)))


def paper(kind: type) -> str:
    """The first that the docstring of a class names, else that of its module; nothing where there is none."""
    for text in (kind.__doc__, sys.modules[kind.__module__].__doc__):
        if found := re.search(r"arXiv:\d{4}\.\d{5}", text or ""):
            return found[0]
    return ""


def _rows(kinds: Kinds[Any], described: Callable[[type], Row]) -> Iterator[Row]:
    """Fastgen's own, then those of installed packages with what is wrong with them."""
    for name, kind in kinds.own.items():
        yield name, *described(kind)
    for name in kinds.offered().keys() - kinds.own.keys():
        try:
            yield name, *described(kinds.find(name))
        except UserError as error:
            yield name, str(error), ""


def _needs(kind: type) -> str:
    if names := _required(kind):
        return f"settings {names}"
    return f"needs {str(kind().needs) or 'nothing'}"


def _required(kind: type) -> str:
    return ", ".join(
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    )


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
