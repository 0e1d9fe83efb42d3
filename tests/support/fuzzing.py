"""Tests that throw made-up input at a reader: few cases each time, ten thousand of fixed seeds in a slow run.

The slow cases come in shards of a seed each, which `pytest -n` spreads over processors; FASTGEN_FUZZ sets another
number. What is thrown is made of something valid, of which a part is another: bytes flipped, cut or doubled, a value of
a JSON text replaced or left out. A reader may take it or refuse it in words; anything else is a stack trace.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from inspect import Parameter, Signature, signature
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fastgen.errors import UserError

MANY = int(os.environ.get("FASTGEN_FUZZ", "10000"))
SHARDS = 16
SEED = 20_261_127
PHASES = (Phase.generate, Phase.shrink)
CHARACTERS = "ab 0.-\xe9\0\n\t\x1b\ud83d\u202e\U0001f98a"
ODD_TEXTS = ("", "\0", "\ud83d", "\x1b[2J", "../../etc/passwd", "/dev/zero", "a" * 5000, "1e999", "9" * 5000, "{}")
ODD_NUMBERS = (0, -1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, float("nan"), float("inf"))


def fuzz(strategy: st.SearchStrategy[Any], *, few: int = 30) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of a check of one case, and of fixtures by name: it must return, or raise a UserError."""

    def decorated(check: Callable[..., None]) -> Callable[..., None]:
        def test(cases: int, shard: int, **fixtures: Any) -> None:
            def one(case: Any) -> None:
                with suppress(UserError):
                    check(case, **fixtures)

            settled = settings(
                max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES
            )
            seed(SEED + shard)(settled(given(strategy)(one)))()

        fixtures = list(signature(check).parameters.values())[1:]
        own = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("cases", "shard")]
        test.__signature__ = Signature([*own, *fixtures])  # type: ignore[attr-defined]
        test.__name__, test.__module__ = check.__name__, check.__module__
        shards = [pytest.param(-(-MANY // SHARDS), shard, marks=pytest.mark.slow) for shard in range(SHARDS)]
        return pytest.mark.parametrize(("cases", "shard"), [(few, 0), *shards])(test)

    return decorated


def mutated(*originals: bytes) -> st.SearchStrategy[bytes]:
    """One of the originals with one to four parts of it changed."""
    place = st.floats(0, 1, exclude_max=True)
    change = st.tuples(st.sampled_from(("set", "flip", "cut", "insert", "double", "end")), place, st.binary(max_size=8))

    def apply(drawn: tuple[bytes, list[tuple[str, float, bytes]]]) -> bytes:
        content = bytearray(drawn[0])
        for kind, where, new in drawn[1]:
            at = int(where * len(content))
            if kind == "set":
                content[at : at + len(new)] = new
            elif kind == "flip" and content:
                content[at] ^= 1 << (new[0] % 8 if new else 0)
            elif kind == "cut":
                del content[at : at + max(1, len(new))]
            elif kind == "insert":
                content[at:at] = new
            elif kind == "double":
                content[at:at] = content[at : at + 64]
            else:
                del content[at:]
        return bytes(content)

    return st.tuples(st.sampled_from(originals), st.lists(change, min_size=1, max_size=4)).map(apply)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(CHARACTERS, max_size=8),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
)
"""A value that may be anywhere."""
names = st.text(CHARACTERS, max_size=5)
odd_values = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)
"""The same, or a list or mapping of it."""


_change = st.tuples(
    st.sampled_from(("replace", "replace", "drop", "add")), st.floats(0, 1, exclude_max=True), odd_values
)
changes = st.lists(_change, min_size=1, max_size=3)
"""What `after` makes of a JSON value."""


def after(made: list[tuple[str, float, Any]], original: Any) -> Any:
    """A JSON value in which values are replaced, left out or added."""
    value = {"": copy.deepcopy(original)}
    for kind, where, new in copy.deepcopy(made):
        places = list(_places(value))
        holder, key = places[int(where * len(places))]
        if kind == "drop" and holder is not value:
            del holder[key]
        elif kind == "add" and isinstance(holder, dict) and holder is not value:
            holder[f"{key}_"] = new
        else:
            holder[key] = new
    return value[""]


def changed(*originals: Any) -> st.SearchStrategy[Any]:
    """One of the JSON values with one to three of the values in it replaced, left out or added."""
    return st.tuples(changes, st.sampled_from(originals)).map(lambda drawn: after(*drawn))


def json_texts(*originals: Any) -> st.SearchStrategy[bytes]:
    """JSON texts of values near these, and of such texts with bytes changed."""
    values = changed(*originals).map(lambda value: json.dumps(value).encode())
    return st.one_of(values, values, mutated(*(json.dumps(value).encode() for value in originals)))


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
