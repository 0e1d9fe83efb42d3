"""The header of a safetensors file, the same for the same content."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METADATA = "__metadata__"
_TEXT = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ENTRY = re.compile(f"{_TEXT}:{_TEXT}".encode())
_METADATA = re.compile(f'(?<="{METADATA}":{{){_TEXT}:{_TEXT}(?:,{_TEXT}:{_TEXT})*'.encode())


def encoded(header: Mapping[str, Any]) -> bytes:
    """A file up to its first tensor: the header's length, and the header as safetensors writes it."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def sort_metadata(file: Path) -> None:
    """Sorts the metadata of a file in place: safetensors writes them in the random order of a hash table.

    Entries are moved as they are written: whatever a writer escapes, the header keeps its length. Tensors are sorted
    already, by dtype and name.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = _METADATA.sub(lambda found: b",".join(sorted(_ENTRY.findall(found[0]))), opened.read(length), count=1)
        opened.seek(8)
        opened.write(text)
