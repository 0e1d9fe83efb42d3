"""YAML and dotted overrides into a Config; all errors at once, each with its path and a suggestion."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .mistakes import listed
from .schema import NAMED, OF_ONE_STAGE, Config

VOLATILE = (
    *("out", "export", "device", "cache", "workers", "attention"),
    *("log", "checkpoints", "timeouts", "evaluate", "guards"),
)
"""Settings that may change between a checkpoint and its resumption."""
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map")


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them (1e-4), true/false as the only booleans, no repeated keys, no aliases."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a setting's name is not text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in [*(f"tag:yaml.org,2002:{name}" for name in _TAGS), None]
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_NOTHING = object()
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # the latter two: `!!int x`, and 1,000 nested brackets


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
    _check_some_stage_reads(raw, written, name)
    raw = _with_stages(_with_source(raw))
    try:
        return Config.model_validate(raw, context={"folder": folder})
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in listed(error, raw))
        raise UserError(f"{'this mapping' if folder is None else source} is not a valid config:\n{lines}") from error


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
        return f"{place / origin.file.name}:{origin.name.rpartition(':')[2]}"

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
        raw = yaml.load(read_bytes(path, Cap.CONFIG).decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not text in UTF-8 ({error.reason} in line {line}): is it a config?") from error
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path} holds a control character, {error.character:#04x}: is it a config?") from error
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}; mend that line") from error
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


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or ' '.join(str(error).split())}{where}"


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"the override {override!r} is not of the form a.b=value, e.g. train.optim.lr=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise UserError(f"the value in the override {override!r} is not valid YAML: {_one_line(error)}") from error
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


def _with_source(raw: dict[str, Any]) -> dict[str, Any]:
    data = raw.get("data")
    if (
        isinstance(data, dict)
        and data.get("source", "prompts") == "prompts"
        and "prompts" in data
        and "path" not in data
    ):
        others = {name: value for name, value in data.items() if name != "prompts"}
        return {**raw, "data": {"source": "prompts", **others, "path": data["prompts"]}}
    return raw


def _with_stages(raw: dict[str, Any]) -> dict[str, Any]:
    raw = dict(raw)
    common = raw.pop("train", None)
    if "objective" in raw and "stages" not in raw:
        raw["stages"] = [{key: raw.pop(key) for key in OF_ONE_STAGE if key in raw}]
    if common is not None and isinstance(raw.get("stages"), list):
        raw["stages"] = [
            {**stage, "train": _merged(common, stage.get("train", {})) if isinstance(common, dict) else common}
            if isinstance(stage, dict)
            else stage
            for stage in raw["stages"]
        ]
    return raw


def _check_some_stage_reads(raw: Mapping[str, Any], written: Mapping[str, Any], source: str) -> None:
    """Refuses a setting of all stages in whose place each of them has another.

    What `written` has, the config without its overrides, may lose its last stage to an override.

    Raises:
        UserError: names the setting.
    """
    before = written.get("train", {})
    unread = dict(_unread(written))
    for path, value in _unread(raw):
        if path not in unread and _at(before, path) == value:
            continue
        name = ".".join(("train", *path))
        raise UserError(
            f"{source} is not a valid config:\n  {name} is {value!r:.80}, but every stage has its own, so that it "
            f"would be ignored: set stages.0.{name} and the like, or leave it out"
        )


def _unread(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and value of each setting of all stages that none of them has."""
    stages = raw.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):  # else refused for itself
        yield from _replaced(raw.get("train", {}), [stage.get("train", {}) for stage in stages])


def _at(node: Any, path: Sequence[str]) -> Any:
    """What is at a path; `_NOTHING` where nothing is."""
    for key in path:
        node = node.get(key, _NOTHING) if isinstance(node, dict) else _NOTHING
    return node


def _replaced(common: Any, owns: Sequence[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is set for all stages, with its path, in whose place each has another."""
    if isinstance(common, dict) and all(isinstance(own, dict) for own in owns):
        for key, value in common.items():
            if owns and all(key in own for own in owns):
                yield from _replaced(value, [own[key] for own in owns], (*path, str(key)))
    elif any(own != common for own in owns):
        yield path, common


def _merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return {
            key: _merged(base.get(key), value) if key in base else value for key, value in {**base, **change}.items()
        }
    return change


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
