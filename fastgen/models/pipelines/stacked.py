"""A LoRA among others on one base, and those below a student's own: recorded, and found again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...errors import UserError
from ...files import sha256_file
from .components import denoisers_of
from .fuse import lora_file
from .notes import TeacherLoRA
from .source import LoRAFile
from .stock_pipeline import StockPipeline

Keys = Literal["diffusers", "kohya"]
FILES: dict[Keys, str] = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "kohya_lora_weights.safetensors",
}
"""The weight file of a LoRA folder, by whose keys it is in."""


@dataclass(frozen=True)
class StackedLoRA:
    """A LoRA file and its weight, as `load_lora_weights` and `set_adapters` take them.

    Args:
        second: whether it belongs to the second of two denoisers.
    """

    folder: str
    file: str
    weight: float = 1.0
    second: bool = False


def written(pipe: StockPipeline, folder: str, kind: Keys) -> tuple[StackedLoRA, ...]:
    """The LoRAs of an export, as they are loaded: one for each denoiser of the pipeline."""
    first = StackedLoRA(folder, FILES[kind])
    second = replace(first, file=FILES[kind].replace(".", "_2."), second=True)
    return (first, second)[: len(denoisers_of(pipe))]


def recorded(lora: LoRAFile) -> tuple[StackedLoRA, TeacherLoRA]:
    """A user's LoRA as it lies on this machine, and as the notes of a student name it.

    Raises:
        UserError: see `lora_file`.
    """
    file, path = lora_file(lora), Path(lora.path)
    folder = path if path.is_dir() else path.parent
    place = str(folder) if not folder.is_absolute() and ".." not in folder.parts else folder.name
    below = TeacherLoRA(
        place=place if path.exists() else lora.path,
        hub=not path.exists(),
        file=file.name,
        weight=lora.weight,
        sha256=sha256_file(file),
    )
    return StackedLoRA(str(file.parent), file.name, lora.weight), below


def found(loras: Sequence[TeacherLoRA], given: Sequence[tuple[Path, float | None]]) -> list[StackedLoRA]:
    """The LoRAs that notes name, on this machine; what is given beside notes that name none is taken as it is.

    Args:
        given: files and weights from the user; a file says where a recorded one lies, and may repeat its weight.

    Raises:
        UserError: one is not found, has other content or another weight, or was never below the student.
    """
    files = [lora_file(LoRAFile(path=str(file))) for file, _ in given]
    if not loras:
        weights = [1.0 if weight is None else weight for _, weight in given]
        return [StackedLoRA(str(f.parent), f.name, weight) for f, weight in zip(files, weights, strict=True)]
    offered = {sha256_file(file): (file, weight) for file, (_, weight) in zip(files, given, strict=True)}
    stack = []
    for lora in loras:
        file, weight = offered.pop(lora.sha256 or "", (None, None))
        if weight is not None and weight != lora.weight:
            raise UserError(f"--stack gives {file} the weight {weight:g}, but {_named(lora)} lay below the student")
        file = file or _in_place(lora)
        stack.append(StackedLoRA(str(file.parent), file.name, lora.weight))
    if offered:
        file, _ = next(iter(offered.values()))
        raise UserError(f"--stack names {file}, but below the student lay {', '.join(map(_named, loras))}: remove it")
    return stack


def _in_place(lora: TeacherLoRA) -> Path:
    """The file where the notes say, if it is the one."""
    try:
        file = lora_file(LoRAFile(path=lora.place, file=lora.file))
    except UserError as error:
        raise UserError(
            f"{_named(lora)} lay below the student and is not at {lora.place}: say where its file is with --stack FILE"
        ) from error
    if lora.sha256 not in (None, sha256_file(file)):
        raise UserError(
            f"{file} is not the file that lay below the student, {_named(lora)}: name that one with --stack FILE"
        )
    return file


def _named(lora: TeacherLoRA) -> str:
    digest = f" (sha256 {lora.sha256[:12]})" if lora.sha256 else ""
    return f"{lora.file} x {lora.weight:g}{digest}"
