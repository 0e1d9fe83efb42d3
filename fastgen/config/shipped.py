"""The configs that come with fastgen: `configs/` of a checkout, or its copy inside an installed wheel."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UserError, did_you_mean
from ..files import atomic_text

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shipped:
    """A shipped config: its `name` (`sdxl/dmd2_4step_lora`), unique among them, and its file."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        """The file as it is, comments included."""
        return self.path.read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """What it does in one line: the first of its comments."""
        return self.text.partition("\n")[0].removeprefix("#").strip()

    @property
    def recipe(self) -> Path | None:
        """The config beside it that trains its teacher, relative to it; None where it needs no training."""
        written = yaml.safe_load(self.text)["teacher"].get("recipe")
        return Path(written) if written else None


def folder() -> Path:
    """Where the shipped configs are.

    Raises:
        UserError: the installation has none.
    """
    for place in (PACKAGE / "configs", PACKAGE.parent / "configs"):  # a wheel's, a checkout's
        if place.is_dir():
            return place
    raise UserError(f"the installation of fastgen at {PACKAGE} has no configs: install it again")


def shipped() -> dict[str, Shipped]:
    """Every shipped config by its name, in the order of the names."""
    top = folder()
    found = {path.relative_to(top).with_suffix("").as_posix(): path for path in top.rglob("*.yaml")}
    return {name: Shipped(name, found[name]) for name in sorted(found)}


def named(name: str) -> Shipped:
    """The shipped config of that name; `.yaml` and a leading `configs/` may be written or not.

    Raises:
        UserError: there is none; the nearest names are suggested.
    """
    known = shipped()
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    inside = " or ".join([each for each in known if wanted and wanted in each][:3])
    otherwise = f"did you mean {inside}?" if inside else "`fastgen list configs` shows them all"
    hint = did_you_mean(wanted, known, otherwise=otherwise)
    raise UserError(f"no config called {name!r} comes with fastgen; {hint}")


def copied(config: Shipped, file: Path | None = None) -> tuple[Path, ...]:
    """Copies a config, and the one that trains its teacher to where it looks for it.

    Args:
        config: to copy.
        file: the copy, or a folder for it; in the working directory under its own name where not given.

    Returns:
        What was written, the config first; a recipe that is already there as it is shipped is left.

    Raises:
        UserError: another file is there; nothing was written.
    """
    target = (file or Path()) / config.path.name if file is None or file.is_dir() else file
    texts = {target: config.text}
    if config.recipe is not None:
        place, text = target.parent / config.recipe, (config.path.parent / config.recipe).read_text(encoding="utf-8")
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            texts[place] = text
    written_anew(texts)
    return tuple(texts)


def written_anew(texts: Mapping[Path, str], *, write: bool = True) -> None:
    """Writes files, all of them or none.

    Args:
        write: whether they are written, and not only checked.

    Raises:
        UserError: one of them is already there.
    """
    for path in texts:
        if path.exists():
            raise UserError(f"{path} is already there, and nothing was written: give another FILE, or move it")
    for path, text in texts.items() if write else ():
        atomic_text(path, text)
