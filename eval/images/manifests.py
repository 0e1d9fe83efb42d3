"""What image files were asked for: the record of `fastgen sample`, or the metadata of a Hugging Face image folder."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastgen.errors import UserError
from fastgen.limits import plain

RECORD, METADATA = "samples.json", "metadata.jsonl"
MANIFESTS = (RECORD, METADATA)
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What JSON of another form raises."""


@dataclass(frozen=True)
class Entry:
    """An image file and what its manifest knows of it; None and () where it does not say.

    Attributes:
        file: relative to the manifest.
        flags: flags of the pipeline's own checkers, such as nsfw_content_detected.
    """

    file: str
    prompt: str | None = None
    label: int | None = None
    flags: tuple[str, ...] = ()


def natural(path: PurePosixPath) -> tuple[tuple[str | tuple[int, str], ...], ...]:
    """Sorts paths as people number them: 2.png before 10.png."""
    return tuple(
        (*(_number(part) if odd % 2 else part for odd, part in enumerate(re.split(r"(\d+)", name))), name)
        for name in path.parts
    )


def naturally(name: str) -> tuple[tuple[str | tuple[int, str], ...], ...]:
    """Sorts names of files as people number them, see `natural`."""
    return natural(PurePosixPath(name))


def _number(digits: str) -> tuple[int, str]:
    """Sorts digits as the number that they are, however many."""
    significant = digits.lstrip("0")
    return len(significant), significant


def highest(names: Iterable[str]) -> str | None:
    """The manifest that speaks for all of these paths: the one in the fewest folders, the sampler's own first."""
    found = [PurePosixPath(name) for name in names if PurePosixPath(name).name in MANIFESTS]
    best = min(found, key=lambda path: (len(path.parts), MANIFESTS.index(path.name)), default=None)
    return None if best is None else str(best)


def read(where: str, content: bytes) -> tuple[Entry, ...]:
    """The images that a manifest names, image 0 first.

    Args:
        where: path of the file, for messages; its name tells the format.

    Raises:
        UserError: it has another form, names no image, or says of some images alone what they were asked for.
    """
    recorded = PurePosixPath(where).name == RECORD
    try:
        entries = _recorded(content) if recorded else _described(content)
    except (*MALFORMED, UserError) as error:
        form = (
            '{"images": [{"file": ..., "prompt": ..., "label": ...}]}, as `fastgen sample` writes it'
            if recorded
            else 'one {"file_name": ..., "text": ...} per line'
        )
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}: {error}); it must hold {form}. Mend it or take it out."
        ) from error
    known = sum(entry.prompt is not None for entry in entries)
    if not entries or known not in (0, len(entries)):
        what = f"has prompts for {known} of its {len(entries)} images" if entries else "names no image"
        raise UserError(f"{where} {what}; give every image one, or none. Mend it or take it out.")
    return entries


def prompts(entries: Iterable[Entry]) -> tuple[str, ...] | None:
    """The prompts of all images; None where they have none."""
    known = tuple(entry.prompt for entry in entries if entry.prompt is not None)
    return known or None


def labels(where: str, content: bytes) -> dict[str, int]:
    """Classes by file, as StyleGAN and EDM write them; raises UserError as `read` does."""
    try:
        pairs = json.loads(content)["labels"] or []
        return {name: label for name, value in pairs if (label := _class(value)) is not None}
    except MALFORMED as error:
        raise UserError(
            f'{where} cannot be read ({error}); it must hold {{"labels": [[name, class], ...]}}. Mend it or take it '
            "out."
        ) from error


def class_in(where: str, value: Any) -> int | None:
    """The class, None for what is no number; raises UserError for one that is too large to be a class."""
    try:
        return _class(value)
    except ValueError as error:
        raise UserError(f"the label of {where} is no class ({error}): mend it or take it out") from error


def class_number(where: str, content: bytes) -> int | None:
    """The class in a file of its own, None where it holds something else; raises as `class_in`."""
    text = content.decode("ascii", "replace").strip()
    return class_in(where, int(text)) if text.isdecimal() else None


def _recorded(content: bytes) -> tuple[Entry, ...]:
    images: list[dict[str, Any]] = json.loads(content)["images"]
    return tuple(
        Entry(_file(one["file"]), _text(one.get("prompt")), _class(one.get("label")), tuple(one.get("flags") or ()))
        for one in images
    )


def _described(content: bytes) -> tuple[Entry, ...]:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    return tuple(Entry(_file(one["file_name"]), _text(one.get("text")), _class(one.get("label"))) for one in lines)


def _file(value: Any) -> str:
    if not isinstance(value, str) or PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise TypeError(f"{value!r:.80} is no file beside it")
    return plain(value, "a file's name")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return plain(value, "a prompt")
    raise TypeError(f"{value!r} is not a prompt")


def _class(value: Any) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{value!r:.20} is no class")
    return value
