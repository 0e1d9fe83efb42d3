"""Headers of safetensors files: as its own writer makes them, and in one order."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastgen.export.header import encoded, settle

TENSORS = {"b.é": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16), "z": torch.tensor(4)}


def header_of(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


def test_it_is_written_as_safetensors_writes_it(tmp_path: Path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = header_of(tmp_path / "a.safetensors")
    assert encoded(json.loads(found[8:])) == found


def test_metadata_in_any_order_end_in_one_and_nothing_else_moves(tmp_path: Path):
    metadata, left = {"format": "pt", "lora": json.dumps({"r": 3, "é": "\t"}, indent=2)}, set()
    for number, order in enumerate((metadata, dict(reversed(metadata.items())))):
        file = tmp_path / f"{number}.safetensors"
        save_file(TENSORS, file)
        body = file.read_bytes()[len(header_of(file)) :]
        tensors = json.loads(header_of(file)[8:])
        file.write_bytes(encoded({"__metadata__": order} | tensors) + body)
        settle(file)
        left.add(file.read_bytes())
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == metadata
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(file).items())
    assert len(left) == 1


def test_a_file_without_metadata_stays_as_it_is(tmp_path: Path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    settle(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before
