"""Names of files and folders in a model card: whatever a path holds, it stays text."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..models.pipelines.notes import Notes, TeacherLoRA
from ..redaction import redacted

_UNSAFE = '"\\`'  # ends a literal, begins an escape, ends a code block
_UNTELLING = {"pytorch_lora_weights", "kohya_lora_weights", "adapter_model", "lora", "model"}
OWN = ("fewstep", "fewstep_2")


def quoted(text: str) -> str:
    """A Python string literal that any reader of the card sees as one line of plain characters."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(c: str) -> str:
    code = ord(c)
    if c.isprintable() and c not in _UNSAFE:
        return c
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def place_of_teacher(notes: Notes) -> str:
    """What the card loads the teacher from: a hub id as it is, a path by its last name."""
    return public(notes.teacher or "base", hub=on_hub(notes))


def on_hub(notes: Notes) -> bool:
    """Whether the teacher is named by a hub id."""
    place = notes.teacher or ""
    if notes.hub is None:  # notes of an earlier version
        return place.count("/") == 1 and not Path(place).exists() and not Path(place).is_absolute()
    return notes.hub


def public(place: str, *, hub: bool) -> str:
    """A hub id as it is, a path by its last name alone; no secrets."""
    place = redacted(place)
    return place if hub else "/".join(["path/to", *filter(None, [Path(place).name])])


def adapter_names(loras: Sequence[TeacherLoRA]) -> list[str]:
    """A name of its own for each LoRA below the student's: its file's, or its folder's where that tells nothing."""
    names: list[str] = []
    for lora in loras:
        stem = Path(lora.file).stem
        telling = Path(lora.place).name if stem in _UNTELLING else stem
        name = re.sub(r"\W+", "_", telling).strip("_") or "lora"
        taken = {*names, *OWN}
        names.append(next(n for n in [name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))] if n not in taken))
    return names
