"""A student's pipeline, whatever its folder: whole, one for each step count or part, or a LoRA on its base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from ...errors import UserError
from .components import denoisers_of
from .folders import SCHEDULER, by_count, is_lora
from .fuse import fuse
from .heads import StepHeads
from .loading import load, locate, variant_of
from .notes import Notes
from .routed import routed
from .stacked import StackedLoRA, found, written
from .stock_pipeline import StockPipeline
from .students import Students


@dataclass(frozen=True)
class Opened:
    """A folder or hub id that can be sampled.

    Args:
        path: folder or hub id, as the user named it.
        base: the pipeline below a LoRA; the notes' teacher where not given.
        stacked: files of LoRAs below it and their weights, where the notes cannot say where they lie on this machine.

    Raises:
        UserError: there is no such folder, base or LoRA, or no LoRA to put on a base.
    """

    path: str
    base: str | None = None
    stacked: Sequence[tuple[Path, float | None]] = ()

    @cached_property
    def folder(self) -> Path:
        folder = locate(self.path)
        if (self.base or self.stacked) and not is_lora(folder) and not (folder / Students.FILE).is_file():
            raise UserError(f"--base and --stack go below a LoRA, and {self.path} is none: leave them out")
        return folder

    @cached_property
    def each(self) -> "tuple[Opened, ...]":
        """The students of a folder of several; nothing of another one."""
        if self._students is None:
            return ()
        return tuple(replace(self, path=str(place)) for place in self._students.places(self.folder))

    @cached_property
    def _students(self) -> Students | None:
        return Students.read(self.folder)

    @cached_property
    def notes(self) -> Notes | None:
        """The notes of all step counts, joined; of several students, who are called alike, the first one's.

        Raises:
            UserError: the students are not called alike.
        """
        if self.each:
            return self._shared
        parts = [part for part in map(Notes.read, by_count(self.folder).values()) if part]
        if not parts:
            return Notes.read(self.folder)
        stops = {count: stops for part in parts for count, stops in part.stops.items()}
        return replace(parts[0], steps=tuple(count for part in parts for count in part.steps), stops=stops)

    @property
    def _shared(self) -> Notes | None:
        first, *others = self.each
        for other in others:
            for name in ("steps", "guidance", "arguments", "sampler", "stops"):
                ours, theirs = (getattr(one.notes, name, None) for one in (first, other))
                if ours != theirs:
                    raise UserError(
                        f"the students in {self.path} are not called alike, as one config trains them: {name} is "
                        f"{ours!s:.60} in {first.folder.name} and {theirs!s:.60} in {other.folder.name}. Sample "
                        "each of them by itself"
                    )
        return first.notes

    def place(self, steps: int | None) -> Path:
        """The folder of the pipeline, or of the LoRA's scheduler, that serves a step count best.

        Of several students it is the first one's.
        """
        if self.each:
            return self.each[0].place(steps)
        counted = by_count(self.folder)
        default = self.notes.steps[0] if self.notes else None
        return counted.get(steps or default or 0) or next(iter(counted.values()), self.folder)

    def load(
        self,
        steps: int | None,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        parts: Mapping[str, Any] | None = None,
    ) -> StockPipeline:
        """The pipeline that serves a step count; of several students one whose call asks each for what is its own.

        Students share their teacher's parts but for the denoiser: these are read once.

        Args:
            parts: parts by name that are not read; below a LoRA only where no other LoRA, which may change them, lies.
        """
        if self._students is not None:
            first, *others = self.each
            pipe = first.load(steps, device=device, dtype=dtype)
            shared = {name: part for name, part in pipe.components.items() if name not in denoisers_of(pipe)}
            further = [other.load(steps, device=device, dtype=dtype, parts=shared) for other in others]
            return routed([pipe, *further], self._students)
        if not is_lora(self.folder):
            place = self.place(steps)
            pipe, heads = load(place, device=device, dtype=dtype, parts=parts), StepHeads.read(place)
            if heads is not None:
                heads.put_on(pipe)
            return pipe
        pipe = self.below.load(device, parts=parts)
        put_on(pipe, self.folder, self.below.loras, scheduler=self.place(steps) / "scheduler")
        return pipe.to(dtype)

    @cached_property
    def below(self) -> "Below":
        notes = self.notes
        assert notes is not None
        return below(self.folder, notes, self.base, self.stacked)


@dataclass(frozen=True)
class Below:
    """What a LoRA lies on: the folder of its base, its variant, and the LoRAs between, the lowest first."""

    base: Path
    variant: str | None
    loras: tuple[StackedLoRA, ...]

    def load(self, device: str | torch.device, *, parts: Mapping[str, Any] | None = None) -> StockPipeline:
        """The base alone, in float32; with parts that are not read, where no LoRA goes into them."""
        return load(self.base, device=device, variant=self.variant, parts=None if self.loras else parts)


def below(folder: Path, notes: Notes, base: str | None, stacked: Sequence[tuple[Path, float | None]]) -> Below:
    """What a LoRA's notes say that it lies on, on this machine.

    Raises:
        UserError: the base or a LoRA is not found.
    """
    named = base or notes.teacher
    if named is None:
        raise UserError(f"{folder} does not say which pipeline its LoRA belongs to: name it with --base")
    loras = tuple(found(notes.loras, stacked))
    try:
        place = locate(named, variant=notes.variant, revision=notes.revision)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(f"{folder} is a LoRA of {named}, which is not here: name its folder with --base") from error
    return Below(place, variant_of(place, notes.variant), loras)


def put_on(
    pipe: StockPipeline, folder: Path, loras: Sequence[StackedLoRA], *, scheduler: Path
) -> tuple[StackedLoRA, ...]:
    """Gives a base the LoRAs below and the folder's own, and its scheduler; returns all LoRAs in their order."""
    kind = json.loads((scheduler / SCHEDULER).read_text(encoding="utf-8"))["_class_name"]
    made: Any = getattr(diffusers, kind)
    pipe.register_modules(scheduler=made.from_pretrained(scheduler))
    every = (*loras, *written(pipe, str(folder), "diffusers"))
    for second in (False, True):
        fuse(
            pipe,
            [(Path(lora.folder) / lora.file, lora.weight) for lora in every if lora.second == second],
            second=second,
        )
    return every
