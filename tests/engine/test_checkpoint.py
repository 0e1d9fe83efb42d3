"""Whole-run checkpoints: exact, verified, never fewer than one, safe on a full disk."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgen.engine import checkpoint
from fastgen.engine.checkpoint import Snapshot, load, load_newest, newest, save
from fastgen.errors import CheckpointError
from fastgen.manifest import (
    MANIFEST,
    ManifestError,
    MissingFileError,
    WrongHashError,
    WrongSizeError,
    write_manifest,
)


def snapshot(value=1.0, size=64):
    return Snapshot(
        {
            "generator": {"weight": torch.full((size,), value)},
            "optimizer.generator": {"0.step": torch.tensor(value)},
        },
        {"images": value, "stage": 0, "rng": {"seed": 3}},
    )


def value_of(found):
    """The value a `snapshot(value)` was made with, once all its parts agree on it."""
    state, tensors = found.state, found.tensors
    assert torch.equal(tensors["generator"]["weight"], torch.full((64,), state["images"]))
    assert tensors["optimizer.generator"]["0.step"].item() == state["images"]
    return state["images"]


def refuse_warnings(message):
    pytest.fail(f"an undamaged checkpoint was skipped: {message}")


def steps(root):
    return sorted(int(path.name) for path in root.iterdir())


def hidden(root):
    return [path.name for path in root.rglob(".*")]


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    raw = torch.randint(0, 256, (4, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.float8_e4m3fn]
    tensors = {str(dtype): raw.view(dtype) for dtype in dtypes}
    tensors |= {"bool": raw > 9, "scalar": torch.tensor(3, dtype=torch.int64), "empty": torch.zeros(0, 3)}
    state = {"name": "caf\u00e9", "none": None, "small": 5e-324, "large": 2**70, "nested": [{"a": True}]}
    path = save(tmp_path, 7, Snapshot({"all": tensors, "none": {}}, state), keep=1)

    assert path == tmp_path / "00000007"
    assert {file.name for file in path.iterdir()} == {
        "all.safetensors",
        "none.safetensors",
        "state.json",
        MANIFEST,
    }
    found = load(path)
    assert found.state == state
    assert found.tensors["none"] == {}
    assert found.tensors["all"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found.tensors["all"][name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert back.flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()


def test_shared_and_strided_tensors_are_saved_one_by_one(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tied = {"embed": base, "head": base, "row": base[1], "turned": base.T, "part": torch.arange(100.0)[5:8]}
    path = save(tmp_path, 0, Snapshot({"generator": tied}, {}), keep=1)
    found = load(path).tensors["generator"]
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())
    assert (path / "generator.safetensors").stat().st_size < 1000


@pytest.mark.parametrize(
    ("step", "keep", "group", "state"),
    [(-1, 1, "a", {}), (0, 0, "a", {}), (0, 1, "../a", {}), (0, 1, "", {}), (0, 1, "a", {"x": float("nan")})],
)
def test_arguments_that_cannot_be_saved_write_nothing(tmp_path, step, keep, group, state):
    with pytest.raises(ValueError, match=r"keep|group|JSON"):
        save(tmp_path / "run", step, Snapshot({group: {}}, state), keep=keep)
    assert not (tmp_path / "run").exists()


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest(tmp_path / "none") is None
    assert load_newest(tmp_path / "none", warn=refuse_warnings) is None
    (tmp_path / "logs").mkdir()
    (tmp_path / "20240101").write_text("a file")
    assert newest(tmp_path) is None
    assert load_newest(tmp_path, warn=refuse_warnings) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "00000001")


def test_pruning_keeps_the_newest_and_orders_steps_as_numbers(tmp_path):
    for step in (5, 99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step, snapshot(float(step)), keep=2)
    assert steps(tmp_path) == [100_000_000, 100_000_001]
    assert newest(tmp_path) == tmp_path / "100000001"
    assert hidden(tmp_path) == []


def test_pruning_counts_only_complete_checkpoints(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, snapshot(), keep=9)
    (tmp_path / "00000003" / "state.json").unlink()
    save(tmp_path, 4, snapshot(), keep=2)
    assert steps(tmp_path) == [2, 3, 4]
    save(tmp_path, 5, snapshot(), keep=2)
    assert steps(tmp_path) == [4, 5]


def test_a_run_resumed_from_an_earlier_step_never_prunes_its_own_checkpoint(tmp_path):
    save(tmp_path, 9, snapshot(), keep=1)
    save(tmp_path, 5, snapshot(), keep=1)
    assert steps(tmp_path) == [5, 9]
    save(tmp_path, 6, snapshot(), keep=2)
    assert steps(tmp_path) == [5, 6, 9]
    save(tmp_path, 7, snapshot(), keep=1)
    assert steps(tmp_path) == [7, 9]


def test_the_old_checkpoint_is_deleted_only_once_the_new_one_is_whole(tmp_path, monkeypatch):
    save(tmp_path, 1, snapshot(1.0), keep=1)
    removed = []

    def remove(path):
        assert value_of(load(tmp_path / "00000002")) == 2.0
        removed.append(path.name)

    monkeypatch.setattr(checkpoint, "remove_folder", remove)
    save(tmp_path, 2, snapshot(2.0), keep=1)
    assert removed == ["00000001"]


def test_a_failed_deletion_does_not_fail_the_save(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1, snapshot(1.0), keep=1)

    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint, "remove_folder", refuse)
    save(tmp_path, 2, snapshot(2.0), keep=1)
    assert "could not be deleted" in caplog.text
    assert value_of(load(newest(tmp_path))) == 2.0


def cut(path):
    data = (path / "generator.safetensors").read_bytes()
    (path / "generator.safetensors").write_bytes(data[:-1])


def flip(path):
    data = bytearray((path / "generator.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "generator.safetensors").write_bytes(data)


DAMAGE = {
    "truncated": (cut, WrongSizeError),
    "one bit": (flip, WrongHashError),
    "no optimizer": (lambda path: (path / "optimizer.generator.safetensors").unlink(), MissingFileError),
    "no state": (lambda path: (path / "state.json").unlink(), MissingFileError),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), ManifestError),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, kind):
    for step in (1, 2):
        save(tmp_path, step, snapshot(float(step)), keep=2)
    damage, error = DAMAGE[kind]
    damage(tmp_path / "00000002")
    with pytest.raises(error, match="00000002"):
        load(tmp_path / "00000002")

    heard = []
    found = load_newest(tmp_path, warn=heard.append)
    assert (found.step, found.path, value_of(found.snapshot)) == (1, tmp_path / "00000001", 1.0)
    assert len(heard) == 1
    assert "00000002" in heard[0]
    assert newest(tmp_path).name == ("00000002" if kind == "one bit" else "00000001")

    damage(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .*00000002.*00000001"):
        load_newest(tmp_path, warn=refuse_warnings)


def test_a_folder_with_a_sound_manifest_may_still_be_no_checkpoint(tmp_path):
    path = save(tmp_path, 1, snapshot(), keep=1)
    (path / "generator.safetensors").write_bytes(b"\0" * 7)
    write_manifest(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path)
    (path / "state.json").unlink()
    write_manifest(path)
    with pytest.raises(MissingFileError, match=r"holds no state\.json"):
        load(path)


def full_while_writing(monkeypatch):
    def write_half(tensors, path):
        if "optimizer" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", write_half)


def full_while_flushing(monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def full_before(monkeypatch):
    usage = checkpoint.shutil._ntuple_diskusage(10**6, 10**6 - 259, 259)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize("fill", [full_before, full_while_writing, full_while_flushing])
@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_is_explained_and_loses_nothing(tmp_path, monkeypatch, fill, step):
    save(tmp_path, 1, snapshot(1.0), keep=1)
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(CheckpointError, match=r"No space left.* needs 260 bytes"):
            save(tmp_path, step, snapshot(2.0), keep=1)
    assert steps(tmp_path) == [1]
    assert value_of(load_newest(tmp_path, warn=refuse_warnings).snapshot) == 1.0


def test_files_are_plain_safetensors(tmp_path):
    path = save(tmp_path, 1, snapshot(), keep=1)
    assert torch.equal(load_file(path / "generator.safetensors")["weight"], torch.ones(64))
