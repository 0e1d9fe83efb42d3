"""The files of an export: every flipped bit is found, and weights that are no student's."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from exporting import Student, student_of
from safetensors.torch import load_file, save_file

from fastgen.cli import main
from fastgen.errors import CheckpointError, VerificationError
from fastgen.export.contents import check_files
from fastgen.export.export import CARDS, export
from fastgen.manifest import MANIFEST, write_manifest

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FLIPS = 60


@pytest.fixture(scope="module")
def student() -> Student:
    return student_of(tiny.class_conditional(), (2,), "ode")


@pytest.fixture
def folder(student: Student, tmp_path: Path) -> Path:
    return export(student.teacher.pipe, student.notes, tmp_path / "student", student.schedules)


def flip(file: Path, place: int) -> Callable[[], object]:
    """Flips a bit of a file; what puts it back."""
    content = file.read_bytes()
    spoilt = bytearray(content)
    spoilt[place % len(spoilt)] ^= 1 << place % 8
    file.write_bytes(spoilt)
    return lambda: file.write_bytes(content)


def test_every_flipped_bit_is_found_by_name(folder: Path, student: Student):
    chance, found = random.Random(0), set()
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".md"]
    for number in range(FLIPS):
        file = files[number % len(files)]
        restore = flip(file, chance.randrange(10**6))
        name = "" if file.name == MANIFEST else file.name  # whose flips speak of what it lists
        with pytest.raises(CheckpointError, match=name):
            check_files(folder, [student.notes])
        restore()
        found.add(file.name)
    assert {MANIFEST, "fastgen.json", "model_index.json", "scheduler_config.json", Path(WEIGHTS).name} <= found
    check_files(folder, [student.notes])
    (folder / "README.md").write_text("what whoever publishes it says of it")
    check_files(folder, [student.notes])


def test_the_command_names_the_damaged_file_and_ends_with_code_3(folder: Path, capsys: pytest.CaptureFixture[str]):
    flip(folder / WEIGHTS, -5)
    assert main(["verify", str(folder)]) == 3
    assert f"{WEIGHTS} has its" in capsys.readouterr().err


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other weights, with hashes that are theirs."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder, but=CARDS)


def test_a_class_whose_embedding_is_not_finite_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    name = next(name for name in load_file(folder / WEIGHTS) if "class_embedding" in name and "weight" in name)

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[name][7] = torch.nan

    rewritten(folder, spoil)
    assert main(["verify", str(folder)]) == 5
    assert f"not finite: {name}, row 7" in capsys.readouterr().err


def test_an_untouched_teacher_is_no_student(folder: Path, student: Student):
    with pytest.raises(VerificationError, match=r"is what it began as, of the teacher .* changed no weight"):
        check_files(folder, [replace(student.notes, unchanged=True)])


@pytest.mark.parametrize("up", ["lora_B.weight", "lora_up.weight", "lora.up.weight"])
def test_a_lora_of_zeros_changes_nothing(tmp_path: Path, student: Student, up: str):
    down = {"lora_B.weight": "lora_A.weight"}.get(up, up.replace("up", "down"))
    tensors = {f"unet.{i}.{end}": torch.ones(2, 2) * (end == down) for i in range(3) for end in (up, down)}
    save_file(tensors, tmp_path / "lora.safetensors")
    write_manifest(tmp_path)
    with pytest.raises(VerificationError, match="each of its 3 updates is zero"):
        check_files(tmp_path, [student.notes])
    save_file(tensors | {f"unet.0.{up}": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    write_manifest(tmp_path)
    check_files(tmp_path, [student.notes])


def test_an_export_without_hashes_is_said_to_have_none(
    folder: Path, student: Student, caplog: pytest.LogCaptureFixture
):
    (folder / MANIFEST).unlink()
    caplog.set_level("INFO", "fastgen")
    check_files(folder, [student.notes])
    assert "not held against their hashes" in caplog.text
