"""YAML and dotted overrides into a Config; all errors at once, each with its path and a suggestion."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..data import Mixture
from ..errors import UserError, did_you_mean
from ..files import atomic_folder, atomic_text
from ..limits import Cap, plain, read_bytes
from ..models.pipelines.rewards import Weighted
from ..plugins import Origin
from ..user_file import short
from .dialect import NotYAMLError, parsed
from .mistakes import listed
from .schema import NAMED, Config
from .shorthand import spelled_out

VOLATILE = (
    *("out", "export", "device", "cache", "workers", "attention"),
    *("log", "checkpoints", "timeouts", "evaluate", "guards"),
)
"""Settings that may change between a checkpoint and its resumption."""


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The config of a run, from a YAML file or a mapping of the same form.

    A top-level `objective` is short for a single stage. `train` at the top holds for every stage, whose own
    `train` changes it. `data.prompts=FILE` is short for a source of prompts. Code that it names as
    FILE.py:Class is run; the path is relative to the config, as that of `teacher.recipe` is, so that both can be
    handed on together. In a mapping it is relative to the working directory.

    Raises:
        UserError: no such file, no YAML, or settings that do not fit; every wrong setting is listed.
    """
    folder = None if isinstance(source, Mapping) else Path(source).parent
    raw = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read(Path(source))
    name, written = "this mapping" if folder is None else str(source), copy.deepcopy(raw)
    for override in overrides:
        _override(raw, override)
    _check_texts(raw, name)
    raw = spelled_out(raw, written, name)
    try:
        return Config.model_validate(raw, context={"folder": folder})
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in listed(error, raw))
        raise UserError(f"{name} is not a valid config:\n{lines}") from error


def dump(config: Config, named: Callable[[Origin], str] = attrgetter("name")) -> str:
    """The resolved config as YAML that `load` reads back to the same config; `named` says how a class is called."""
    return yaml.safe_dump(_plain(config, named), sort_keys=False, width=110)


def save(config: Config, folder: Path) -> None:
    """Writes the resolved config and the user's files that it names, so that `load` reads them as they were run."""

    def kept(origin: Origin) -> str:
        if origin.file is None:
            return origin.name
        place = Path("code", hashlib.sha256(origin.source).hexdigest()[:16])
        if not (folder / place).is_dir():
            with atomic_folder(folder / place) as fresh:
                (fresh / origin.file.name).write_bytes(origin.source)
        return f"{place / origin.file.name}:{short(origin.name)}"

    atomic_text(folder / "config.yaml", dump(config, kept))


def fingerprint(config: Config) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption, the content of the user's files included."""
    settings = _plain(config, attrgetter("identity"))
    return {key: value for key, value in settings.items() if key not in VOLATILE}


def digest(value: Any) -> str:
    """Short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [file.name for file in path.parent.glob("*.y*ml")]
        hint = did_you_mean(path.name, beside, otherwise="give the path of a YAML file, see configs/")
        raise UserError(f"there is no config {path}; {hint}")
    try:
        raw = parsed(read_bytes(path, Cap.CONFIG).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not text in UTF-8 ({error.reason} in line {line}): is it a config?") from error
    except NotYAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}; mend that line") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {'nothing' if raw is None else type(raw).__name__}, not a mapping of settings")
    return raw


def _check_texts(value: Any, source: str, path: tuple[str, ...] = ()) -> None:
    """Raises UserError for a text at any depth, or a setting's name, that is none."""
    if isinstance(value, str):
        plain(value, f"{'.'.join(path)} of {source}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            plain(str(key), f"a setting's name in {'.'.join(path) or 'the top'} of {source}")
            _check_texts(inner, source, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _check_texts(inner, source, (*path, str(number)))


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"the override {override!r} is not of the form a.b=value, e.g. train.optim.lr=1e-4")
    try:
        value = parsed(text)
    except NotYAMLError as error:
        raise UserError(f"the value in the override {override!r} is not valid YAML: {error}") from error
    node: Any = raw
    for key in parents:
        node = _entered(node, key, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        if keys == ["data", "prompts"] and node.get("source", "prompts") == "prompts":
            node.pop("path", None)  # that of the file, which the override takes the place of
        node[last] = value


def _entered(node: Any, key: str, override: str) -> Any:
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    child = node[_position(node, key, override)] if isinstance(node, list) else node[key]
    if not isinstance(child, (dict, list)):
        raise UserError(f"the override {override!r} looks into {key!r}, which is the value {child!r}")
    return child


def _position(node: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise UserError(f"the override {override!r} needs a number below {len(node)} in place of {key!r}")
    return int(key)


def _plain(value: Any, named: Callable[[Origin], str]) -> Any:
    """Models, dataclasses and paths as what YAML and JSON hold; `named` says how a class is called."""
    if isinstance(value, (Mixture, Weighted)):
        parts = zip(value.parts, value.weights, strict=True)
        return [{**_plain(part, named), "weight": weight} for part, weight in parts]
    for kinds, key in NAMED:
        if kinds.fits(type(value)):
            return {key: named(kinds.origin(type(value))), **_plain(asdict(value), named)}
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name), named) for name in type(value).model_fields}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value), named)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, named) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, named) for item in value]
    return str(value) if isinstance(value, Path) else value
