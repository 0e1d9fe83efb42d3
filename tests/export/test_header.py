"""Headers of safetensors files: as its own writer makes them, and in one order."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastgen.export.header import encoded, sort_metadata

TENSORS = {"b.é": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16), "z": torch.tensor(4)}


def header_of(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


CHARACTERS = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
"""All that text in UTF-8 may hold."""


def test_it_is_written_as_safetensors_writes_it(tmp_path: Path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt", CHARACTERS[:200]: CHARACTERS})
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
        sort_metadata(file)
        left.add(file.read_bytes())
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == metadata
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(file).items())
    assert len(left) == 1


def test_metadata_of_any_character_end_in_one_order(tmp_path: Path):
    name, metadata = CHARACTERS[:200], {CHARACTERS[:200]: CHARACTERS, "a": '"__metadata__":{"b":"","a":""}', 'a"': "\\"}
    save_file(TENSORS | {'"__metadata__":{': torch.ones(3)}, tmp_path / "a.safetensors", metadata=metadata)
    sort_metadata(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        assert opened.metadata() == metadata
    assert list(json.loads(header_of(tmp_path / "a.safetensors")[8:])["__metadata__"]) == [name, "a", 'a"']


def test_escapes_of_another_writer_stay(tmp_path: Path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    tensors, body = header_of(tmp_path / "a.safetensors")[9:], (tmp_path / "a.safetensors").read_bytes()
    text = rb'{"__metadata__":{"b":"\/\u00e9","a":"\u0041"},' + tensors
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body[9 + len(tensors) :])
    sort_metadata(tmp_path / "a.safetensors")
    assert header_of(tmp_path / "a.safetensors")[8:].startswith(rb'{"__metadata__":{"a":"\u0041","b":"\/\u00e9"},')
    assert load_file(tmp_path / "a.safetensors").keys() == TENSORS.keys()


def test_a_file_without_metadata_stays_as_it_is(tmp_path: Path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    sort_metadata(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before
