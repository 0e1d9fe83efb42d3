"""Classes by the names that settings give them: fastgen's own, an installed package's, or one in a file of the user's.

A file and a package are code that runs: only what somebody named is looked up, as NAME of an entry point or as
FILE.py:Class. A file stands alone: it may import what is installed, and nothing that lies beside it.
"""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.abc import ExecutionLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from huggingface_hub import constants
from pydantic import ValidationError

from .errors import UserError, did_you_mean

T = TypeVar("T")
SUFFIX = ".py"
EXPORTED = ("model_index.json", "fastgen.json")
"""Files that tell a folder of a pipeline or of a LoRA student."""


@dataclass(frozen=True)
class Origin:
    """Where a class came from.

    Args:
        name: what a setting names it by, the path of a file in full.
        identity: what a run records of it: another content, or another version, is another identity.
        file: the user's file; None for fastgen's own and for packages.
        source: its content as it was run.
    """

    name: str
    identity: str
    file: Path | None = None
    source: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, eq=False)
class Kinds(Generic[T]):
    """The classes that a setting may name.

    Args:
        what: they are, in a word.
        own: fastgen's by name; no other class can take these names.
        group: of entry points.
        members: what a class has to have besides its settings.
        trial: is called with an object of a class that is not fastgen's, and raises where it cannot be used.
    """

    what: str
    own: Mapping[str, type[T]]
    group: str
    members: tuple[str, ...]
    trial: Callable[[T], object] = lambda made: made
    _origins: dict[type, Origin] = field(default_factory=dict, init=False, repr=False)

    def find(self, name: str, folder: Path | None = None) -> type[T]:
        """The class of that name.

        Args:
            name: of fastgen's own, of an entry point, or FILE.py:Class; the class may be left out where it is the only
                one in its file.
            folder: that a file's path is relative to; the working directory where not given.

        Raises:
            UserError: there is none, its code fails, or it cannot be used.
        """
        if name in self.own:
            return self.own[name]
        if file_of(name) is not None:
            return self._in_file(name, folder)
        offered = self.offered()
        if name in offered:
            return self._of_package(offered[name])
        known = [*self.own, *offered]
        otherwise = f"known: {', '.join(known)}, or FILE.py:Class"
        raise UserError(f"there is no {self.what} {name!r}; {did_you_mean(name, known, otherwise=otherwise)}")

    def offered(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name; nothing of it is imported.

        Raises:
            UserError: two packages offer the same name.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            other = found.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise UserError(
                    f"the {self.what} {entry.name!r} is offered by {_package(other)} and by {_package(entry)}: "
                    "uninstall one of them"
                )
        return found

    def origin(self, kind: type) -> Origin:
        """Where a class came from, as far as it is known."""
        for name, own in self.own.items():
            if kind is own:
                return Origin(name, name)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return self._origins.get(kind, Origin(name, name))

    @property
    def known(self) -> list[type]:
        """Fastgen's own, and those that were found."""
        return [*self.own.values(), *self._origins]

    def is_own(self, kind: type) -> bool:
        """Whether a class is fastgen's."""
        return kind in self.own.values()

    def fits(self, kind: Any) -> bool:
        """Whether something is a class that can be used."""
        return isinstance(kind, type) and not any(self._faults(kind))

    def tried(self, make: Callable[[], T], told: str) -> T:
        """An object of a class that is not fastgen's.

        Raises:
            UserError: it cannot be made, or not be used.
            ValidationError: its settings do not fit.
        """
        try:
            made = make()
            self.trial(made)
        except ValidationError:
            raise
        except Exception as error:  # whatever a user's code raises
            raise UserError(f"{told} cannot be used: {cause_of(error)}") from error
        return made

    def _in_file(self, name: str, folder: Path | None) -> type[T]:
        file, wanted = _parted(name)
        path = _allowed((folder or Path.cwd()) / file.expanduser(), folder)
        if not path.is_file():
            place = "the config" if folder else "the working directory"
            beside = [file.name for file in path.parent.glob(f"*{SUFFIX}")]
            hint = did_you_mean(path.name, beside, otherwise=f"its path is relative to {place}")
            raise UserError(f"there is no file {path}; {hint}")
        source = path.read_bytes()
        module = run(path, source)
        kind = self._named(module, wanted, path) if wanted else self._only(module, path)
        full, digest = f"{path}:{kind.__name__}", hashlib.sha256(source).hexdigest()
        identity = f"{path.name}:{kind.__name__} (sha256 {digest[:16]})"
        self._origins[kind] = Origin(full, identity, path, source)
        return kind

    def _named(self, module: ModuleType, wanted: str, path: Path) -> type[T]:
        classes = [name for name, x in vars(module).items() if isinstance(x, type) and x.__module__ == module.__name__]
        if wanted not in vars(module):
            otherwise = f"it defines {', '.join(classes)}" if classes else "it defines no class"
            raise UserError(f"{path} has no class {wanted!r}; {did_you_mean(wanted, classes, otherwise=otherwise)}")
        return self._checked(vars(module)[wanted], f"{wanted} in {path}")

    def _only(self, module: ModuleType, path: Path) -> type[T]:
        kinds: list[type[T]] = [x for x in vars(module).values() if self.fits(x) and x.__module__ == module.__name__]
        if len(kinds) == 1:
            return kinds[0]
        if not kinds:
            members = ", ".join(f"`{name}`" for name in self.members)
            raise UserError(f"{path} defines no {self.what}: write a frozen dataclass with {members}")
        names, first = ", ".join(kind.__name__ for kind in kinds), f"{path.name}:{kinds[0].__name__}"
        raise UserError(f"{path} defines several {self.what}s ({names}): say which, as in {first}")

    def _of_package(self, entry: EntryPoint) -> type[T]:
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # whatever a package's code raises
            raise UserError(
                f"the {self.what} {entry.name!r} of {_package(entry)} cannot be imported: {cause_of(error)}"
            ) from error
        kind = self._checked(found, f"{entry.name} of {_package(entry)}")
        file = inspect.getsourcefile(kind)
        content = f", sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}" if file else ""
        self._origins[kind] = Origin(entry.name, f"{entry.name} ({_package(entry)}, {entry.value}{content})")
        return kind

    def _checked(self, kind: Any, told: str) -> type[T]:
        if not isinstance(kind, type):
            raise UserError(f"{told} is no class, but {kind!r:.80}: name the class of a {self.what}")
        if fault := next(self._faults(kind), None):
            raise UserError(f"{told} is no {self.what}: {fault}")
        return kind

    def _faults(self, kind: type) -> Iterator[str]:
        """Why a class cannot be used."""
        if inspect.isabstract(kind):
            yield f"it is abstract, define {', '.join(sorted(kind.__abstractmethods__))}"  # type: ignore[attr-defined]
        if "__dataclass_fields__" not in vars(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            yield "it is no frozen dataclass, write @dataclass(frozen=True) above it"
            return
        there = {*dir(kind), *(one.name for one in fields(kind))}
        if missing := [name for name in self.members if name not in there]:
            yield f"it has no {', '.join(missing)}"


def file_of(name: str) -> Path | None:
    """The file in FILE.py:Class or FILE.py; None for a name that is neither."""
    file, _ = _parted(name)
    return file if file.suffix == SUFFIX else None


def short(name: str) -> str:
    """The name without a file's path: its class, or else its stem."""
    file, wanted = _parted(name)
    return wanted or (file.stem if file.suffix == SUFFIX else name)


def _parted(name: str) -> tuple[Path, str]:
    file, colon, wanted = name.rpartition(":")
    return (Path(file), wanted) if colon and file.endswith(SUFFIX) else (Path(name), "")


def _allowed(path: Path, folder: Path | None) -> Path:
    """The path, resolved, where the config that names it was not downloaded with a pipeline."""
    for place in {folder.absolute(), folder.resolve()} if folder is not None else ():
        for above in (place, *place.parents):
            downloaded = above == Path(constants.HF_HUB_CACHE).resolve()
            if downloaded or any((above / name).is_file() for name in EXPORTED):
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


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
