"""Several students in one folder, each for its part of the conditions, and which of them a condition belongs to.

Multi-student distillation (MSD, arXiv:2410.23274): the conditions are divided once, each student learns its own part
of them, and a condition is answered by the student that learnt it. Classes are divided by number; prompts by the
nearest centre of their text embeddings, so that a prompt that nobody was trained on has a student too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import UserError
from ...files import atomic_file, atomic_json
from ...limits import Cap, read_bytes
from .stock_pipeline import StockPipeline
from .text_embedding import text_embeddings


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class _Told:
    """The content of `students.json`."""

    folders: Annotated[tuple[Annotated[str, Field(pattern=r"^\w[\w-]*$")], ...], Field(min_length=2)]
    classes: tuple[tuple[NonNegativeInt, ...], ...] | None = None
    format: Literal[1] = 1


@dataclass(frozen=True, eq=False)
class Students:
    """Who answers what.

    Args:
        folders: names of the students' folders, in the one that holds them all.
        classes: the labels of each student; None where prompts are divided.
        centres: float32 [K, d], a row for each student, in the space of `text_embeddings`; None where classes are
            divided.
    """

    FILE: ClassVar[str] = "students.json"
    CENTRES: ClassVar[str] = "centres.safetensors"

    folders: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...] | None = None
    centres: Tensor | None = None

    @classmethod
    def read(cls, folder: Path) -> "Students | None":
        """Those of a folder, None where it is not one of several students.

        Raises:
            UserError: the files are there, but damaged.
        """
        path = folder / cls.FILE
        if not path.is_file():
            return None
        try:
            told = TypeAdapter(_Told).validate_json(read_bytes(path, Cap.JSON))
            centres = None if told.classes is not None else load_file(folder / cls.CENTRES)["centres"]
        except (ValidationError, SafetensorError, OSError, KeyError) as error:
            raise UserError(
                f"{path} does not say which student is for what ({' '.join(str(error).split()):.200}): copy the folder "
                "again from where it was made"
            ) from error
        found, parts = cls(told.folders, told.classes, centres), told.classes if centres is None else centres
        if parts is None or len(told.folders) != len(parts):
            raise UserError(f"{path} names another number of students than of parts: copy the folder again")
        labels = [label for part in told.classes or () for label in part]
        if len(set(told.folders)) < len(told.folders) or len(set(labels)) < len(labels):
            raise UserError(f"{path} names a folder or a class twice: copy the folder again")
        return found

    def write(self, folder: Path) -> None:
        """Writes the files that say it, the one by which the folder is recognised last."""
        if self.centres is not None:
            with atomic_file(folder / self.CENTRES) as file:
                save_file({"centres": self.centres.contiguous()}, file)
        atomic_json(folder / self.FILE, {"format": 1, "folders": self.folders, "classes": self.classes})

    def places(self, folder: Path) -> tuple[Path, ...]:
        """The students' folders, in the one that holds them all.

        Raises:
            UserError: one is not there.
        """
        found = tuple(folder / name for name in self.folders)
        if gone := [place.name for place in found if not place.is_dir()]:
            raise UserError(
                f"{folder / self.FILE} names {len(found)} students, and {', '.join(gone)} is not there: copy the "
                "folder again from where it was made, or sample those that are there by themselves"
            )
        return found

    def owners(self, pipe: StockPipeline, call: Mapping[str, Any]) -> list[int]:
        """The number of the student that each row of a stock call belongs to.

        Args:
            pipe: whose text encoder reads the prompts.
            call: arguments of the call, `class_labels` or `prompt` among them as a list.

        Raises:
            UserError: a class that no student is for.
        """
        if self.centres is not None:
            return nearest(text_embeddings(pipe, call["prompt"]), self.centres)
        labels = [int(label) for label in call["class_labels"]]
        if unknown := [label for label in labels if label not in self._owner]:
            raise UserError(f"class {unknown[0]} belongs to none of {len(self.folders)} students: ask for another")
        return [self._owner[label] for label in labels]

    @cached_property
    def _owner(self) -> dict[int, int]:
        return {label: owner for owner, labels in enumerate(self.classes or ()) for label in labels}


def nearest(points: Tensor, centres: Tensor) -> list[int]:
    """The number of the centre [K, d] that each point [n, d] is nearest to; of equal ones the first."""
    found: list[int] = torch.cdist(points.double(), centres.double()).argmin(dim=1).tolist()
    return found
