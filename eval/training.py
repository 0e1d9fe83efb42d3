"""How the student that a report is on was trained, read from the log of its run."""

from collections.abc import Iterable
from pathlib import Path

from fastgen.errors import UserError

from .metrics_json import Series, Training
from .rows import Row
from .watch.curves import ends, series_of
from .watch.files import LOG, RunFiles


def training_of(rows: Iterable[Row], out: Path) -> Training | None:
    """The run whose folder holds the student, or the report itself; None where neither lies in one.

    Args:
        rows: of the report.
        out: folder of the report.
    """
    students = [Path(row.source.path) for row in rows if row.role == "student" and row.source.path]
    for folder in dict.fromkeys(path.resolve().parent for path in (*students, out)):
        if (folder / LOG).is_file():
            try:
                run = RunFiles.read(folder)
            except (UserError, OSError):
                continue
            found = (Series(name, tuple(points)) for name, points in series_of(run.log).items())
            return Training(folder.name, ends(run.log), tuple(found))
    return None
