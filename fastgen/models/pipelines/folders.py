"""What a folder holds, told by its files: a pipeline, one for each step count, several students, or a LoRA of ours."""

from pathlib import Path

from ...errors import UserError
from .notes import Notes
from .students import Students

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
OF_RUN = "student"  # in the folder of a run, its export
_SHOWN = 8  # entries of a folder that is nothing of these


def is_student(folder: Path) -> bool:
    """Whether a pipeline can be loaded from the folder: it is one, holds several, or a LoRA of ours."""
    several = (folder / Students.FILE).is_file() or bool(by_count(folder))
    return (folder / INDEX).is_file() or several or is_lora(folder)


def is_lora(folder: Path) -> bool:
    """Notes, a scheduler and no pipeline."""
    whole = (folder / INDEX).is_file() or any((place / INDEX).is_file() for place in by_count(folder).values())
    return not whole and (folder / Notes.FILE).is_file() and any(folder.rglob(SCHEDULER))


def by_count(folder: Path) -> dict[int, Path]:
    """Step count -> the folder `4step` and so on that serves it, fewest first."""
    counts = {place.name.removesuffix("step"): place for place in folder.glob("*step") if _serves(place)}
    return {int(count): counts[count] for count in sorted(filter(str.isdecimal, counts), key=int)}


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's, which holds the student as its export."""
    return is_student(folder / OF_RUN)


def _serves(place: Path) -> bool:
    return (place / INDEX).is_file() or (place / "scheduler" / SCHEDULER).is_file()


def check_is_pipeline(folder: Path) -> None:
    """Raises a UserError for what is not one whole pipeline, and says what it is and what to give instead."""
    if folder.is_file():
        raise UserError(
            f"{folder} is a single file, not a pipeline folder. Give it as a teacher (teacher.path), or convert it "
            "once with the pipeline class's from_single_file(...) and save_pretrained(folder), then give that folder."
        )
    if (folder / INDEX).is_file():
        return
    if students := Students.read(folder):
        raise UserError(
            f"{folder} holds {len(students.folders)} students, each for its part of the conditions, and one pipeline "
            f"is wanted: give one of them, as {folder / students.folders[0]}"
        )
    if is_lora(folder):
        raise UserError(
            f"{folder} is a student's LoRA, and a whole pipeline is wanted: give the student's own folder, which was "
            "exported beside it, or as a teacher its base in teacher.path and this folder in teacher.loras"
        )
    if counted := by_count(folder):
        raise UserError(
            f"{folder} holds a pipeline for each of {', '.join(map(str, counted))} steps, and one is wanted: give one "
            f"of them, as {next(iter(counted.values()))}"
        )
    if is_run(folder):
        raise UserError(f"{folder} is the folder of a run: give its student, {folder / OF_RUN}")
    if not folder.is_dir():
        raise UserError(f"there is no pipeline folder {str(folder)!r}: give the folder that holds {INDEX}")
    found = sorted(entry.name for entry in folder.iterdir())[:_SHOWN]
    raise UserError(
        f"{folder} is not a pipeline: it has no {INDEX} (found: {', '.join(found) or 'nothing'}). Give the folder that "
        "save_pretrained wrote for the whole pipeline, not for one part of it."
    )
