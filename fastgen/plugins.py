"""Classes by the names that settings give them: fastgen's own, an installed package's, or one in a file of the user's.

A file and a package are code that runs: only what somebody named is looked up, as NAME of an entry point or as
FILE.py:Class.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from .errors import UserError, did_you_mean
from .user_file import SUFFIX, allowed, cause_of, file_of, parted, run

T = TypeVar("T")


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
        usual: a class gets the public properties and methods of this one that it does not have itself.
        trial: is called with an object of a class that is not fastgen's, and raises where it cannot be used.
    """

    what: str
    own: Mapping[str, type[T]]
    group: str
    members: tuple[str, ...]
    usual: type = object
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

    def completed(self, kind: type[T]) -> type[T]:
        """The class, with the defaults of what it leaves out."""
        for name in _public(self.usual) - _there(kind):
            setattr(kind, name, vars(self.usual)[name])
        return kind

    def tried(self, make: Callable[[], T], called: str) -> T:
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
            raise UserError(f"{called} cannot be used: {cause_of(error)}") from error
        return made

    def _in_file(self, name: str, folder: Path | None) -> type[T]:
        file, wanted = parted(name)
        path = allowed((folder or Path.cwd()) / file.expanduser(), folder)
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
            return self.completed(kinds[0])
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

    def _checked(self, kind: Any, called: str) -> type[T]:
        if not isinstance(kind, type):
            raise UserError(f"{called} is no class, but {kind!r:.80}: name the class of a {self.what}")
        if fault := next(self._faults(kind), None):
            raise UserError(f"{called} is no {self.what}: {fault}")
        return self.completed(kind)

    def _faults(self, kind: type) -> Iterator[str]:
        """Why a class cannot be used."""
        if inspect.isabstract(kind):
            yield f"it is abstract, define {', '.join(sorted(kind.__abstractmethods__))}"  # type: ignore[attr-defined]
        if "__dataclass_fields__" not in vars(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            yield "it is no frozen dataclass, write @dataclass(frozen=True) above it"
            return
        there = _there(kind)
        if missing := [name for name in self.members if name not in there]:
            yield f"it has no {', '.join(missing)}"


def _there(kind: Any) -> set[str]:
    """What an object of a dataclass has, settings without a default too."""
    return {*dir(kind), *(one.name for one in fields(kind))}


def _public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
