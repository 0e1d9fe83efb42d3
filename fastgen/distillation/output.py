"""Where a run, or the runs of several students, would write: nothing of others is written over."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..config.schema import Config
from ..disk import check_writable
from ..errors import UserError, first_few
from ..models.pipelines.notes import Notes
from ..models.pipelines.students import Students

SHOWN = 3  # files that are named


def check_output(config: Config, *, resume: bool) -> None:
    """Raises UserError where a run of one student or its exports would overwrite something."""
    out, checkpoints = config.out, config.out / "checkpoints"
    if checkpoints.is_dir() and not resume:
        refuse_folder(out, "a run", "go on with it by --resume, or ")
    check_writable(out, "out")
    begun = resume and checkpoints.is_dir() and any(checkpoints.iterdir())
    for folder in (config.exported, config.exported_lora) if config.sharing == "lora" else (config.exported,):
        _check_place(config, folder)
        if not (begun and _is_export(folder)):
            _check_free(folder, _names(folder), because=", and no checkpoint is left" * resume)
        check_writable(folder.parent, "the folder of the export")


def check_outputs(config: Config, runs: Sequence[Config]) -> None:
    """Raises UserError where the folder that several students go into is a run's, or its export has other things."""
    if (config.out / "checkpoints").is_dir():
        refuse_folder(config.out, "a run, of one student")
    folder = config.exported
    if not (folder / Students.FILE).is_file():
        ours = {Students.CENTRES, *(place.name for run in runs for place in (run.exported, run.exported_lora))}
        _check_free(folder, [name for name in _names(folder) if name[0] != "." and name not in ours])


def refuse_folder(out: Path, held: str, remedy: str = "") -> NoReturn:
    """Refuses an output folder for what it holds.

    Args:
        out: the folder.
        held: what is there.
        remedy: what is advised before another folder is.

    Raises:
        UserError: in any case.
    """
    raise UserError(f"{out} already holds {held}: {remedy}give another folder with out=...; nothing there was touched")


def _check_place(config: Config, exported: Path) -> None:
    """Refuses an export that is a file, or that would take the place of the run's own folder or of the teacher's."""
    kept = [config.out, Path(config.teacher.path)] if config.teacher.path else [config.out]
    for path in kept:
        if exported.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"the export would replace {path}: give a folder of its own with export=...")
    if exported.exists() and not exported.is_dir():
        raise UserError(f"the export goes to {exported}, which is a file: give a folder with export=...")


def _check_free(exported: Path, others: Sequence[str], *, because: str = "") -> None:
    """Refuses a folder with what was not exported by those who would write there."""
    if others:
        raise UserError(
            f"the export goes to {exported}, which already holds {first_few(others, SHOWN)}{because}: give another "
            "folder with export=..., or move them; nothing there was touched"
        )


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _is_export(folder: Path) -> bool:
    """Whether a student was exported there, or one for each step count."""
    return any(file.is_file() for file in (folder / Notes.FILE, *folder.glob(f"*step/{Notes.FILE}")))
