"""The header of a safetensors file, the same for the same content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METADATA = "__metadata__"


def encoded(header: Mapping[str, Any]) -> bytes:
    """A file up to its first tensor: the header's length, and the header as safetensors writes it."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def settle(file: Path) -> None:
    """Sorts the metadata of a file, in its place, which safetensors leaves in the order of a hash table's seed.

    Tensors are in an order of their own already, by dtype and name.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        found = json.loads(opened.read(length))
        text = encoded({name: dict(sorted(told.items())) if name == METADATA else told for name, told in found.items()})
        assert len(text) == 8 + length, f"{file} has a header that safetensors would not write"
        opened.seek(0)
        opened.write(text)
