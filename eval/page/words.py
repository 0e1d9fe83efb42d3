"""Values in words, as the page writes them."""

from collections.abc import Mapping
from typing import Any

from ..measures.figure import Figure
from ..metrics_json import LineFile, Subject, Verdict

DASH = "\u2013"


def number(value: float | None) -> str:
    """Four significant digits; a dash for what does not apply."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plain(value: Any) -> str:
    """A setting: a dash for none, lists and tables with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return DASH if value is None else str(value)


def details(values: Mapping[str, float | int | str]) -> str:
    """What belongs to a figure, for who asks."""
    return "; ".join(f"{name} {value}" for name, value in values.items())


def scatter(figure: Figure) -> str:
    """How far a figure may be off: its spread over blocks of seeds with their values, or its interval."""
    if figure.spread is not None:
        return f"sd\u00a0{figure.spread:.2g}: {', '.join(f'{value:.3g}' for value in figure.values)}"
    return "" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}"


def asked(item: Subject) -> str:
    """A prompt in quotes, or a class with its name, if it has another than its number; empty for no condition."""
    if item.prompt is not None:
        return f"\u201c{item.prompt}\u201d"
    if item.label is None:
        return ""
    named = item.class_name and item.class_name != str(item.label)
    return f"class {item.label}" + (f" {item.class_name}" if named else "")


def lines_of(file: LineFile | None) -> str:
    """A file of prompts or labels with its hash."""
    return "no file" if file is None else f"{file.path} ({file.count:,} lines, sha256 {file.sha256})"


def found(verdict: Verdict) -> str:
    """What an assertion found, by row."""
    values = (f"{one.row}: {'not measured' if one.value is None else number(one.value)}" for one in verdict.measured)
    return ", ".join(values) or "no such student row"
