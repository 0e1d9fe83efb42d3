"""Tables of Markdown from classes: a row for each field, with its name, type, default and what the docstring says."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ENTRY = re.compile(r"^(?P<indent>\s*)(?P<names>[a-z]\w*(?:, [a-z]\w*)*): (?P<text>.*)$")
SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
TABLES = {"objective": "[an objective](#objectives)", "data": "[a source](#data)"} | dict.fromkeys(
    ("rewards", "judges"), "[rewards](#rewards)"
)
"""Settings whose values are entries of a table, by name."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Setting:
    """One row of a table, in words; `default` is empty where the setting is required."""

    name: str
    kind: str
    default: str
    meaning: str


def model_page(model: type[BaseModel], *, level: int = 2) -> str:
    """The schema of a file: a table for every class that is reached from `model`."""
    return "\n\n".join(section(kind, level=level) for kind in classes_in(model))


def section(kind: type, *, level: int = 2, title: str | None = None) -> str:
    """Heading, first paragraph of the docstring and table of a class."""
    rows = list(settings_of(kind))
    parts = [f"{'#' * level} {title or kind.__name__}", about(kind), table(rows) if rows else ""]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Setting]) -> str:
    """Settings as a table of Markdown."""
    lines = ["| name | value | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.kind} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(lines)


def settings_of(kind: type) -> Iterator[Setting]:
    """The fields of a pydantic model or dataclass, in their order."""
    said = meanings(kind)
    for name, annotation, default, description in _fields(kind):
        kind_of = TABLES.get(name) if annotation is Any or get_args(annotation)[:1] == (Any,) else None
        meaning = _cell(description) or said.get(name) or ("names this law" if name == "law" else "")
        yield Setting(name, kind_of or worded(annotation), shown(default), meaning)


def about(kind: type) -> str:
    """What the docstring says of the class itself, before any of its fields."""
    lines: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        if line.strip() in SECTIONS or _entry(line, _names(kind)):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def meanings(kind: type) -> dict[str, str]:
    """Field -> what the docstring of its class, or of one that it is derived from, says of it."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        said |= dict(_said(base, _names(kind)))
    return said


def worded(annotation: Any) -> str:
    """A type in words, with links to the classes that have a table."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(worded(args[0]), args[1:])
    if origin is Literal:
        return _either([f"`{_plain(arg)}`" for arg in args])
    if origin in (Union, types.UnionType):
        return _either([worded(arg) for arg in args])
    if origin in (tuple, list, Sequence):
        inner = dict.fromkeys(worded(arg) for arg in args if arg is not Ellipsis)
        return f"list of {', '.join(inner)}"
    if origin in (dict, Mapping):
        return f"mapping of {worded(args[0])} to {worded(args[1])}"
    if isinstance(annotation, type) and _has_table(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return WORDS.get(annotation, "any")


def shown(default: Any) -> str:
    """A default as YAML would hold it."""
    return "required" if default in (MISSING, PydanticUndefined) else f"`{_plain(default)}`"


def classes_in(kind: type) -> list[type]:
    """A class and all with a table that its fields may hold, each once, outer ones first."""
    found = [kind]
    for each in found:  # grows while it is walked
        for _, annotation, _, _ in _fields(each):
            found += [inner for inner in _inner(annotation) if inner not in found]
    return found


def _fields(kind: type) -> Iterator[tuple[str, Any, Any, str]]:
    """(name, annotation with its bounds, default, description) of each field."""
    if known := _described(kind):
        for name, info in known.items():
            yield name, _annotated(info), _default(info), info.description or ""
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind) if is_dataclass(kind) else ():
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        yield field.name, hints[field.name], default, ""


def _described(kind: type) -> Mapping[str, FieldInfo]:
    """The fields of a pydantic model or pydantic dataclass, with what is said of each; empty for another class."""
    found: Mapping[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return found


def _annotated(info: FieldInfo) -> Any:
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})


def _names(kind: type) -> set[str]:
    return {name for name, *_ in _fields(kind)} if _has_table(kind) else set()


def _has_table(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _inner(annotation: Any) -> list[type]:
    if _has_table(annotation):
        return [annotation]
    args = () if get_origin(annotation) is Literal else get_args(annotation)
    return [kind for arg in args for kind in _inner(arg)]


def _said(kind: type, known: set[str]) -> Iterator[tuple[str, str]]:
    """Entries `name: text` or `name, name: text` of a docstring; lines indented further go on with the text."""
    names, depth, text = "", 0, ""
    for line in [*inspect.cleandoc(kind.__dict__.get("__doc__") or "").splitlines(), "end"]:
        entry, indent = _entry(line, known), len(line) - len(line.lstrip())
        if names and not entry and line.strip() and indent > depth:
            text += f" {line.strip()}"
            continue
        yield from ((name, _cell(text)) for name in names.split(", ") if names)
        names, depth, text = (entry["names"], indent, entry["text"]) if entry else ("", 0, "")


def _entry(line: str, known: set[str]) -> re.Match[str] | None:
    match = ENTRY.match(line)
    return match if match and set(match["names"].split(", ")) <= known else None


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bounded(words: str, extras: Sequence[Any]) -> str:
    limits = [part for extra in extras for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    found = [(word, getattr(limit, key, None)) for limit in limits for key, word in BOUNDS.items()]
    return ", ".join([words, *(f"{word} {value}" for word, value in found if value is not None)])


def _either(words: Sequence[str]) -> str:
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last


def _plain(value: Any) -> str:
    """YAML in one line; of settings what differs from their own defaults, and which law they are."""
    if _has_table(type(value)):
        held = [(name, getattr(value, name), usual) for name, _, usual, _ in _fields(type(value))]
        changed = {name: part for name, part, usual in held if name == "law" or part != usual}
        return f"{{{', '.join(f'{name}: {_plain(part)}' for name, part in changed.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
