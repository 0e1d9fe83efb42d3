"""What is wrong with a config in words: a line for each setting, with its path and what was probably meant."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError

from ..errors import did_you_mean
from .schema import NAMED, OF_ONE_STAGE, Config

MAX_LISTED = 20
_UNSAID = re.compile(r"settings|bool|int|float|str|constrained-\w+|(tuple|list|dict|literal|function-\w+)\[.*\]")
"""Parts of a path that no file has: a name's settings, and the types that a value is tried as."""
_PLAINER = {  # types of pydantic's errors in the words of a YAML file
    "extra_forbidden": "no such setting",
    "unexpected_keyword_argument": "no such setting",
    "missing": "this setting is required",
    "union_tag_not_found": "this needs a `law`, e.g. {law: uniform} of times, {law: shared} of guidance",
    "path_type": "this must be the path of a file or folder",
    "tuple_type": "this must be a list",
    "too_short": "this must not be empty",
    "dict_type": "this must be a mapping",
    "dataclass_type": "this must be a mapping",
    "model_type": "this must be a mapping",
    "model_attributes_type": "this must be a mapping",
}


def listed(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """A line for each wrong setting; what is wrong within a setting says more than that the setting is."""
    items = error.errors(include_url=False)
    outer = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    inner = [item for item in items if item["loc"] not in outer]
    more = [f"and {len(inner) - MAX_LISTED:,} more"] if len(inner) > MAX_LISTED else []
    return [_explained(item, raw) for item in inner[:MAX_LISTED]] + more


def _explained(item: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    where = ".".join(part for part in map(str, item["loc"]) if not _UNSAID.fullmatch(part)) or "the file"
    message = _PLAINER.get(item["type"], str(item["msg"]).removeprefix("Value error, "))
    if item["type"] == "union_tag_invalid":
        message = f"there is no law {item['ctx']['tag']!r}; known: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{where}: {message}"
    if message == "no such setting":
        return f"{where}: {message}{_suggestion(item['loc'], item['input'], raw)}"
    return message if where == "the file" else f"{where}: {message} (got {item['input']!r:.80})"


def _suggestion(loc: Sequence[Any], value: Any, raw: Mapping[str, Any]) -> str:
    """What was meant: first of the settings that may stand there, then of all."""
    name, beside, known = str(loc[-1]), _beside(loc, raw), _known_names()
    if (loc[0], name) == ("data", "prompts"):
        return f" of this source; for these prompts in its place set data={{source: prompts, path: {value}}}"
    kin = [other for other in beside if name in other or other in name]
    if name in OF_ONE_STAGE and len(loc) == 1:
        return " beside stages, each of which has its own: put it into one of them, or leave stages out"
    if name in known and not kin:
        return " here; it belongs elsewhere"
    hint = did_you_mean(name, kin if name in known else beside) or did_you_mean(name, sorted(known))
    return f"; {hint}" if hint else ""


def _beside(loc: Sequence[Any], raw: Any) -> list[str]:
    """The settings that may stand where a wrong one does, as far as they are known."""
    kinds: list[type] = [Config]
    for part in loc[:-1]:
        if part == "settings":  # of the objective or source that the mapping names, or of any of several
            named = [
                (str(one.get(key)), known.own)
                for one in (raw if isinstance(raw, list) else [raw])
                for known, key in NAMED
            ]
            kinds = [own[name] for name, own in named if name in own]
        else:
            kinds = [inner for kind in kinds for inner in _inside(kind, part)]
            raw = raw[part] if isinstance(raw, list) or (isinstance(raw, Mapping) and part in raw) else raw
    return [name for kind in kinds for name in _annotations(kind)]


def _inside(kind: type, part: Any) -> list[type]:
    """The settings below a setting's name, or of the law that an error names."""
    annotations = _annotations(kind)
    if part in annotations:
        return _kinds_in(annotations[part])
    return [kind] if isinstance(part, int) or part == getattr(kind, "law", None) else []


def _annotations(kind: type) -> dict[str, Any]:
    """The settings of a model or dataclass, with their types."""
    if issubclass(kind, BaseModel):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    try:
        hints = get_type_hints(kind)
    except Exception:  # a user's class, which is refused for it; its settings still have names
        hints = {}
    return {field.name: hints.get(field.name) for field in fields(kind)}  # type: ignore[arg-type]


def _kinds_in(annotation: Any) -> list[type]:
    """The models and dataclasses that a type is made of."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _kinds_in(part)]


def _known_names() -> set[str]:
    """Every setting's name at any depth, those of sources and objectives included."""
    roots = (Config, *(own for kinds, _ in NAMED for own in kinds.known))
    return {"train", "objective", "name", "source"}.union(*map(_names_below, roots))


def _names_below(kind: type) -> set[str]:
    annotations = _annotations(kind)
    return set(annotations).union(*(_names_below(inner) for one in annotations.values() for inner in _kinds_in(one)))
