"""Tables of figures in a page of the documentation, each between markers of its own."""

import shutil
import subprocess
from pathlib import Path

from ..files import atomic_text


def put(page: Path, name: str, block: str) -> None:
    """Writes a block between its markers into a page, which is made if it is not there."""
    atomic_text(page, inserted(page.read_text() if page.exists() else "", name, block))


def inserted(text: str, name: str, block: str) -> str:
    """The text with the block between the markers of that name, at its end if it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if end in rest else rest
    return f"{before}{begin}\n{block}\n{end}{after}"


def commit() -> str:
    """The commit of this package's working tree, with "+" where it was changed; "unknown" outside of one."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    if not shutil.which("git"):
        return "unknown"
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
