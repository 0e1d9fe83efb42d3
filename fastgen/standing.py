"""Where threads that do not answer stand."""

import sys
import traceback
from pathlib import Path
from sysconfig import get_path
from threading import enumerate as threads


def standing(prefix: str) -> str:
    """Where the threads whose names begin so are at work, in words: nothing of their waiting for each other."""
    frames = sys._current_frames()
    library = Path(get_path("stdlib"))
    places = []
    for thread in threads():
        if thread.name.startswith(prefix) and thread.ident in frames:
            stack = traceback.extract_stack(frames[thread.ident])
            own = [one for one in stack if not Path(one.filename).is_relative_to(library / "threading.py")]
            places += [f"{Path(one.filename).name}:{one.lineno} in {one.name}" for one in own[-1:]]
    return f"its threads stand at {', '.join(sorted(set(places)))}" if places else "none of its threads is at work"
