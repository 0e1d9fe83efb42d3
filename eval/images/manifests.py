"""What image files were asked for: the record of `fastgen sample`, or the metadata of a Hugging Face image folder."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastgen.errors import UserError

RECORD, METADATA = "samples.json", "metadata.jsonl"
MANIFESTS = (RECORD, METADATA)


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


def natural(path: PurePosixPath) -> tuple[tuple[str | int, ...], ...]:
    """Sorts paths as people number them: 2.png before 10.png."""
    return tuple(
        (*(int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"(\d+)", name))), name)
        for name in path.parts
    )


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
    except (ValueError, TypeError, KeyError) as error:
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
    """Of all images, or None."""
    known = tuple(entry.prompt for entry in entries if entry.prompt is not None)
    return known or None


def _recorded(content: bytes) -> tuple[Entry, ...]:
    images: list[dict[str, Any]] = json.loads(content)["images"]
    return tuple(
        Entry(str(one["file"]), _text(one.get("prompt")), _class(one.get("label")), tuple(one.get("flags") or ()))
        for one in images
    )


def _described(content: bytes) -> tuple[Entry, ...]:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    return tuple(Entry(str(one["file_name"]), _text(one.get("text")), _class(one.get("label"))) for one in lines)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{value!r} is not a prompt")


def _class(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
