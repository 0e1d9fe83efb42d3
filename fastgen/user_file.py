"""A file of a user's code: how a setting names it, where it may lie, and how it runs.

A file stands alone: it may import what is installed, and nothing that lies beside it.
"""

import hashlib
import importlib.util
import sys
import traceback
from functools import cache
from importlib.abc import ExecutionLoader
from pathlib import Path
from types import ModuleType

from huggingface_hub import constants

from .errors import UserError

SUFFIX = ".py"
EXPORTED = ("model_index.json", "fastgen.json", "students.json", "*step/fastgen.json")
"""Files that tell a folder of a pipeline, of a LoRA student, of several students, or of one for each step count."""


def file_of(name: str) -> Path | None:
    """The file in FILE.py:Class or FILE.py; None for a name that is neither."""
    file, _ = parted(name)
    return file if file.suffix == SUFFIX else None


def short(name: str) -> str:
    """The name without a file's path: its class, or else its stem."""
    file, wanted = parted(name)
    return wanted or (file.stem if file.suffix == SUFFIX else name)


def parted(name: str) -> tuple[Path, str]:
    """The path, and the name of the class where one is given."""
    file, colon, wanted = name.rpartition(":")
    return (Path(file), wanted) if colon and file.endswith(SUFFIX) else (Path(name), "")


def allowed(path: Path, folder: Path | None) -> Path:
    """The path, resolved, where the config that names it was not downloaded with a pipeline."""
    for place in {folder.absolute(), folder.resolve()} if folder is not None else ():
        for above in (place, *place.parents):
            downloaded = above == Path(constants.HF_HUB_CACHE).resolve()
            if downloaded or any(file for name in EXPORTED for file in above.glob(name)):
                raise UserError(
                    f"the config names code to run, {path}, and lies within a pipeline's folder, {above}, which may "
                    "have been downloaded: nothing was run. Read both, then copy the config elsewhere"
                )
    return path.resolve()


@cache
def run(path: Path, source: bytes) -> ModuleType:
    """The module that a file with that content defines; the same one when asked again.

    Raises:
        UserError: its code fails.
    """
    name = f"fastgen_user_{path.stem}_{hashlib.sha256(bytes(path) + source).hexdigest()[:12]}"
    spec = importlib.util.spec_from_loader(name, _Held(path, source), origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses and type hints look names up
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        del sys.modules[name]
        raise UserError(f"{path} cannot be run: {cause_of(error, path)}{_alone(error, path)}") from error
    return module


def _alone(error: BaseException, path: Path) -> str:
    """What to do about an import of a file beside it."""
    if not isinstance(error, ModuleNotFoundError) or not (path.parent / f"{error.name}{SUFFIX}").is_file():
        return ""
    return "; a file stands alone: put both in one, or install them as a package with an entry point"


class _Held(ExecutionLoader):
    """Runs a file's content as it was read once, so that what is recorded is what ran."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._source)


def cause_of(error: BaseException, path: Path | None = None) -> str:
    """What was raised, in one line, and where: the last line of that file, or of any."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if path is None or frame.filename == str(path)]
    place = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
