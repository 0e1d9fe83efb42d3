"""Tables of figures in a page of the documentation, each between markers of its own."""

import shutil
import subprocess
from pathlib import Path

from ..files import atomic_text

PACKAGE = Path(__file__).parents[1]


def put(page: Path, name: str, block: str) -> None:
    """Writes a block between its markers into a page, which is made if it is not there."""
    atomic_text(page, inserted(page.read_text() if page.exists() else "", name, block))


def inserted(text: str, name: str, block: str) -> str:
    """The text with the block between the markers of that name, at its end if it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if end in rest else rest
    return f"{before}{begin}\n{block}\n{end}{after}"


def commit(package: Path = PACKAGE) -> str:
    """The commit of the package's working tree, with "+" where code is not as committed; "unknown" outside of one.

    Figures and pages are no code: what one run wrote does not mark the next.
    """
    found = _git(package, "describe", "--always")
    changed = _git(package, "status", "--porcelain", "--untracked-files=all", "--", "*.py")
    return found + "+" * bool(changed) if found else "unknown"


def _git(folder: Path, *asked: str) -> str:
    """What git answers in a folder; nothing where there is no git or no working tree."""
    if not shutil.which("git"):
        return ""
    command = ["git", "-C", str(folder), *asked]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
