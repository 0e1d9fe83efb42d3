"""What a config may say in short: one objective for one stage, settings of all stages at the top, a file of prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .schema import OF_ONE_STAGE

_NOTHING = object()


def spelled_out(raw: Mapping[str, Any], written: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A config's settings where its schema has them.

    Args:
        raw: the settings as they are given, overrides included.
        written: the same without overrides.
        source: what messages call the config.

    Raises:
        UserError: a setting of all stages in whose place each of them has another.
    """
    _check_some_stage_reads(raw, written, source)
    return _with_stages(_with_source(raw))


def _with_source(raw: Mapping[str, Any]) -> dict[str, Any]:
    data = raw.get("data")
    if (
        isinstance(data, dict)
        and data.get("source", "prompts") == "prompts"
        and "prompts" in data
        and "path" not in data
    ):
        others = {name: value for name, value in data.items() if name != "prompts"}
        return {**raw, "data": {"source": "prompts", **others, "path": data["prompts"]}}
    return dict(raw)


def _with_stages(raw: Mapping[str, Any]) -> dict[str, Any]:
    raw = dict(raw)
    common = raw.pop("train", None)
    if "objective" in raw and "stages" not in raw:
        raw["stages"] = [{key: raw.pop(key) for key in OF_ONE_STAGE if key in raw}]
    if common is not None and isinstance(raw.get("stages"), list):
        raw["stages"] = [_with_common(stage, common) for stage in raw["stages"]]
    return raw


def _with_common(stage: Any, common: Any) -> Any:
    """A stage with the settings of all stages, where it has none of its own."""
    if not isinstance(stage, dict):
        return stage
    return {**stage, "train": _merged(common, stage.get("train", {})) if isinstance(common, dict) else common}


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
