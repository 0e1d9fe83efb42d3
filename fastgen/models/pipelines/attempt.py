"""Trying a pipeline's call out; where it fails, finding out by further trials what it lacked."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from PIL import Image

from ...errors import UserError
from .arguments import parameters
from .canonical import canonical
from .refusal import PLAIN_CALL, cause, failure, raised
from .stock_pipeline import StockPipeline
from .watch import Step

Attempt = Callable[[Mapping[str, Any]], list[Step]]
_PICTURES = re.compile(r"(?!ip_adapter).*(^|_)(image|mask|video)$")
_PIXELS, _FRAMES = 64, 9
_ANY_SCHEDULER = "use a pipeline class whose call takes any scheduler of its process"


def attempt(pipe: StockPipeline, call: Mapping[str, Any], run: Attempt) -> list[Step]:
    """What `run` sees of the pipeline's call under its plainest scheduler.

    Args:
        call: arguments of the pipeline's call.
        run: calls the pipeline with such arguments.

    Raises:
        UserError: the call fails. Where it runs with an image besides, or under its own scheduler alone, that is said
            to be the cause; else what it raises under its own.
    """
    try:
        with canonical(pipe):
            return run(call)
    except UserError:
        raise
    except Exception as error:
        swapped = error
    check = f"its call runs with no more than {', '.join(call) or 'its defaults'}"
    for pictures in _picture_arguments(pipe, call):
        if _error(run, {**call, **pictures}) is None:
            said = f"it runs with {' and '.join(pictures)} besides, and fails without ({cause(swapped)})"
            raise failure(type(pipe).__name__, check, said, remedy=PLAIN_CALL) from swapped
    own = _error(run, call)
    if own is None:
        with canonical(pipe):
            plain = type(pipe.scheduler).__name__
        check = f"its call runs under the plain scheduler of its process, {plain}"
        said = f"it runs under its own {type(pipe.scheduler).__name__} only, as that is set ({cause(swapped)})"
        raise failure(type(pipe).__name__, check, said, remedy=_ANY_SCHEDULER) from swapped
    raise raised(type(pipe).__name__, check, own, remedy=PLAIN_CALL) from own


def _error(run: Attempt, call: Mapping[str, Any]) -> Exception | None:
    """What the call raises under the pipeline's own scheduler."""
    try:
        run(call)
    except Exception as error:
        return error
    return None


def _picture_arguments(pipe: StockPipeline, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Grey for every argument of the call that takes pictures and was not given, then for the first of them alone."""
    size = call.get("width") or _PIXELS, call.get("height") or _PIXELS
    names = [name for name in parameters(pipe) if _PICTURES.fullmatch(name) and name not in call]
    for chosen in (names, names[:1])[: len(names)]:
        yield {name: _grey(name, size) for name in chosen}


def _grey(name: str, size: tuple[int, int]) -> Any:
    picture = Image.new("L" if "mask" in name else "RGB", size, "grey")
    return [picture] * _FRAMES if name.endswith("video") else picture
