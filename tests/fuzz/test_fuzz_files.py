"""Notes, checkpoints and LoRA files that were damaged or made up are taken or refused in words, never more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzz, json_texts, mutated
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from fastgen.engine.checkpoint import Snapshot, load
from fastgen.engine.checkpoint import save as save_checkpoint
from fastgen.manifest import MANIFEST, write_manifest
from fastgen.models.pipelines.fuse import lora_file
from fastgen.models.pipelines.lora_file import METADATA, normal_form, read_updates
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.source import LoRAFile

NOTES = {
    "format": 1,
    "steps": [1, 4],
    "guidance": 1.5,
    "arguments": {"height": 64, "guidance_scale": 0.0},
    "num_classes": 10,
    "null_label": 10,
    "objective": "dmd2",
    "teacher": "owner/name",
    "loras": [{"place": "a/b", "hub": True, "file": "a.safetensors", "weight": 0.5}],
    "metrics": {"fid": 3.5},
    "sampler": "ode",
    "stops": {"1": [{"timestep": 999, "time": 1.0, "alpha": 0.0, "sigma": 1.0, "p": 0.0, "q": 1.0}]},
}


@fuzz(json_texts(NOTES))
def test_notes(case: bytes, tmp_path: Path) -> None:
    (tmp_path / Notes.FILE).write_bytes(case)
    notes = Notes.read(tmp_path)
    if notes is not None:
        notes.write(tmp_path)
        assert Notes.read(tmp_path) == notes


STATE = {"images": 64, "stage": 0, "config": {"a": 1}, "seconds": 0.5}
TENSORS = {"generator": {"w": torch.arange(4.0)}, "optim": {"exp_avg": torch.ones(4)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 1, Snapshot(TENSORS, STATE), keep=1)


def read(path: Path) -> None:
    for group in load(path).tensors.values():
        dict(group)


MANIFESTS = json_texts(
    {"state.json": {"bytes": 3, "sha256": "0" * 64}, "generator.safetensors": {"bytes": 80, "sha256": "f" * 64}}
)
HEADERS = mutated(save({"w": torch.arange(4.0)}), save(TENSORS["optim"], {"format": "pt"}))


@fuzz(MANIFESTS)
def test_manifests(case: bytes, checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_bytes(case)
    read(checkpoint)


@fuzz(st.tuples(st.sampled_from(["state.json", "generator.safetensors"]), json_texts(STATE) | HEADERS))
def test_checkpoints_whose_manifest_is_right(case: tuple[str, bytes], checkpoint: Path) -> None:
    (checkpoint / case[0]).write_bytes(case[1])
    write_manifest(checkpoint)
    read(checkpoint)


DOWN, UP = torch.randn(2, 8), torch.randn(8, 2)
LORAS = [
    {"unet.a.lora_A.weight": DOWN, "unet.a.lora_B.weight": UP},
    {"lora_unet_a.lora_down.weight": DOWN, "lora_unet_a.lora_up.weight": UP, "lora_unet_a.alpha": torch.tensor(2.0)},
    {"unet.a.lora.down.weight": DOWN, "unet.a.lora.up.weight": UP, "unet.a.dora_scale": torch.ones(8, 1)},
]
SETTINGS = {"unet.lora_alpha": 4, "unet.use_rslora": True, "unet.alpha_pattern": {"a": 8}}


def merged(file: Path) -> None:
    updates, _ = read_updates(lora_file(LoRAFile(path=str(file))))
    if updates:
        normal_form(updates)
    for update in updates:
        update.added(torch.zeros(len(update.up), update.down[0].numel()), torch.arange(len(update.up)))


@fuzz(mutated(*(save(lora, {METADATA: json.dumps(SETTINGS)}) for lora in LORAS)))
def test_lora_files(case: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(case)
    merged(tmp_path / "a.safetensors")


@fuzz(json_texts(SETTINGS))
def test_what_a_lora_file_says_of_itself(case: bytes, tmp_path: Path) -> None:
    save_file(LORAS[0], tmp_path / "a.safetensors", {METADATA: case.decode("utf-8", "replace")})
    merged(tmp_path / "a.safetensors")


SHAPES = st.sampled_from([(), (0,), (2,), (2, 8), (8, 2), (0, 8), (3, 5), (2, 8, 1, 1), (8, 2, 3, 3)])
KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])


@fuzz(st.dictionaries(st.sampled_from([name for lora in LORAS for name in lora]), st.tuples(SHAPES, KINDS), min_size=1))
def test_lora_tensors_of_other_shapes_and_kinds(case: dict[str, Any], tmp_path: Path) -> None:
    tensors = {name: torch.ones(shape).to(kind) for name, (shape, kind) in case.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    merged(tmp_path / "a.safetensors")
