"""Pages and tables that follow from the code, so that they cannot say anything else.

    python docs/generate.py            writes them
    python docs/generate.py --check    fails where a page is not what would be written

Every class that a setting may hold gets a table of its fields: name, type, default and what its docstring says of them.
"""

import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from eval.metrics_json import Report
from fastgen.config.schema import Config
from fastgen.config.shipped import shipped
from fastgen.config.yaml_file import load
from fastgen.data import SOURCES
from fastgen.objectives import OBJECTIVES

DOCS = Path(__file__).parent
NOTEBOOK, CONTRIBUTING = DOCS.parent / "notebooks/own_objective.ipynb", DOCS.parent / "CONTRIBUTING.md"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")
ENTRY = re.compile(r"^(?P<indent>\s*)(?P<names>[a-z]\w*(?:, [a-z]\w*)*): (?P<text>.*)$")
SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
TABLES = {"objective": "[an objective](#objectives)", "data": "[a source](#data)"}
"""Settings whose values are entries of a table, by name."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

ABOUT_SETTINGS = """# Settings

<!-- Written by `python docs/generate.py` from the code: change the docstrings there. -->

What a config may hold. Dotted paths change a setting behind it: `fastgen train --config FILE train.batch=64`. A wrong
name or value is an error that names the right one. Short forms: a top-level `objective` is a single stage; `train` at
the top holds for every stage, whose own `train` changes it; `data.prompts=FILE` is a source of prompts.
"""


ABOUT_CONFIGS = """# Configs

<!-- Written by `python docs/generate.py` from the files in configs/. -->

What comes with fastgen, also in a wheel. Each file says what its paper states, what was measured here and which of the
paper's settings it cannot express. Only `digits`, `cifar10/dmd2_1step`, `cifar10/compare` and `emoji` were
[measured here](figures.md).
"""

ABOUT_OBJECTIVES = """## Objectives

`objective: {name: NAME, ...}` with the settings of that name; what they compute: [objectives](objectives.md).
"""

ABOUT_DATA = """## Data

`data: {source: NAME, ...}` with the settings of that name.
"""

ABOUT_PARTS = """## Parts of objectives

Mappings that the settings above may hold; `law` says which of several is meant.
"""


ABOUT_REPORTS = """# metrics.json, format 2

<!-- Written by `python docs/generate.py` from the code: change the docstrings there. -->

`python -m eval --out report` writes `report/metrics.json` after every row (whole or not at all), image files beside it
and, at the end, `report/report.html`: everything in one page that needs no network. `python -m eval.page report` writes
the page again.

The file is strict JSON: no NaN, no infinity. `null` means "does not apply or was not measured"; the reason then stands
in the row's `not_measured`. Paths of images are relative to the folder of `metrics.json`, with `/`. A reader must
refuse a `format` that it does not know, and pass over keys that it does not know. A field with a default may be absent
in files of earlier versions. In Python `eval.metrics_json.Report.read(folder)` reads it; as a JSON schema:
[metrics_schema.json](metrics_schema.json).

Names of figures: `fid`, `fid_infinity`, `kid`, `inception_score`, `precision`, `recall`, `density`, `coverage`, `cmmd`,
`clip_score`, `reward_<name>`, `diversity`, `diversity_ratio` (to the first teacher row), `lpips` (between images of one
prompt or class, at 64 px), `lpips_ratio`, `vendi`, `saturation_ratio`, `contrast_ratio` (to the real images),
`spectrum_gap` (largest |dB| of a band), `nyquist_peak`, `swd`, `accuracy`; of digits `frechet`, `accuracy`, `diversity`
(to the real digits).

With `--seeds K` a pipeline is measured on K blocks of `num` seeds, one after the other: `values` has one value per
block, `value` is their mean (which `--assert` takes), `spread` their standard deviation, `low` and `high` the means of
the blocks' ends: one block's interval. `spectrum`, `per_class` and the gallery are the first block's, costs those of
all.
"""


@dataclass(frozen=True)
class Setting:
    """One row of a table, in words; `default` is empty where the setting is required."""

    name: str
    kind: str
    default: str
    meaning: str


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "configs.md": configs_page(),
        NOTEBOOK: own_objective(*(path.read_text(encoding="utf-8") for path in (NOTEBOOK, CONTRIBUTING))),
        DOCS / "metrics.md": f"{ABOUT_REPORTS}\n{model_page(Report)}\n",
        DOCS / "metrics_schema.json": json.dumps(Report.model_json_schema(), indent=1) + "\n",
    }


def own_objective(notebook: str, contributing: str) -> str:
    """The notebook with the example of CONTRIBUTING.md in its cell of that name, as a file."""
    (example,) = re.findall(r"^( *)```python\n(.*?)^\1```", contributing, re.S | re.M)
    held = json.loads(notebook)
    source = f"%%writefile mine.py\n{inspect.cleandoc(example[1])}"
    (cell,) = (cell for cell in held["cells"] if cell["id"] == "objective")
    cell["source"] = source.splitlines(keepends=True)
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


def configs_page() -> str:
    """Every config that comes with fastgen, in a table for each teacher."""
    rows: dict[str, list[str]] = {}
    for name, config in shipped().items():
        rows.setdefault(name.rpartition("/")[0], []).append(_config_row(name, load(config.path), config.summary))
    head = "| config | minimises | steps | trains | from | |\n|---|---|---|---|---|---|"
    tables = [f"## {folder}\n\n{head}\n" + "\n".join(lines) for folder, lines in rows.items()]
    return "\n\n".join([ABOUT_CONFIGS.strip(), *tables]) + "\n"


def _config_row(name: str, config: Config, summary: str) -> str:
    kinds = {kind: objective for objective, kind in OBJECTIVES.items()}
    objectives = dict.fromkeys(f"`{kinds[type(stage.objective)]}`" for stage in config.stages)
    sources = {kind: source for source, kind in SOURCES.items()}
    trains = {"full": "the network", "lora": "a LoRA", "scores": "the network, a LoRA as fake score"}[config.sharing]
    said = PAPER.sub(r"[\g<0>](https://arxiv.org/abs/\1)", summary)
    steps = ", ".join(map(str, config.student.steps))
    return f"| `{name}` | {', '.join(objectives)} | {steps} | {trains} | {sources[type(config.data)]} | {said} |"


def settings_page() -> str:
    """The config, every objective and every source of data."""
    objectives = [part for name, kind in OBJECTIVES.items() for part in _named(name, kind)]
    sources = [part for name, kind in SOURCES.items() for part in _named(name, kind)]
    parts = [
        ABOUT_SETTINGS,
        *(section(kind) for kind in classes_in(Config)),
        ABOUT_OBJECTIVES,
        *objectives,
        ABOUT_DATA,
        *sources,
        ABOUT_PARTS,
        *(section(kind, level=3) for kind in _parts()),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def documented() -> list[type]:
    """Every class that has a table of settings."""
    return [*classes_in(Config), *OBJECTIVES.values(), *SOURCES.values(), *_parts()]


def model_page(model: type[BaseModel], *, level: int = 2) -> str:
    """The schema of a file: a table for every class that is reached from `model`."""
    return "\n\n".join(section(kind, level=level) for kind in classes_in(model))


def section(kind: type, *, level: int = 2, title: str | None = None) -> str:
    """Heading, first paragraph of the docstring and table of a class."""
    rows = list(settings_of(kind))
    parts = [f"{'#' * level} {title or kind.__name__}", about(kind), table(rows) if rows else ""]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Setting]) -> str:
    """Settings as a table of Markdown."""
    lines = ["| name | value | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.kind} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(lines)


def settings_of(kind: type) -> Iterator[Setting]:
    """The fields of a pydantic model or dataclass, in their order."""
    said = meanings(kind)
    for name, annotation, default, description in _fields(kind):
        kind_of = TABLES.get(name) if annotation is Any or get_args(annotation)[:1] == (Any,) else None
        meaning = _cell(description) or said.get(name) or ("names this law" if name == "law" else "")
        yield Setting(name, kind_of or worded(annotation), shown(default), meaning)


def about(kind: type) -> str:
    """What the docstring says of the class itself, before any of its fields."""
    lines: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        if line.strip() in SECTIONS or _entry(line, _names(kind)):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def meanings(kind: type) -> dict[str, str]:
    """Field -> what the docstring of its class, or of one that it is derived from, says of it."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        said |= dict(_said(base, _names(kind)))
    return said


def worded(annotation: Any) -> str:
    """A type in words, with links to the classes that have a table."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(worded(args[0]), args[1:])
    if origin is Literal:
        return _either([f"`{_plain(arg)}`" for arg in args])
    if origin in (Union, types.UnionType):
        return _either([worded(arg) for arg in args])
    if origin in (tuple, list, Sequence):
        inner = dict.fromkeys(worded(arg) for arg in args if arg is not Ellipsis)
        return f"list of {', '.join(inner)}"
    if origin in (dict, Mapping):
        return f"mapping of {worded(args[0])} to {worded(args[1])}"
    if isinstance(annotation, type) and _has_table(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return WORDS.get(annotation, "any")


def shown(default: Any) -> str:
    """A default as YAML would hold it."""
    if default in (MISSING, PydanticUndefined):
        return "required"
    if isinstance(default, BaseModel) or is_dataclass(default):
        held = [(name, getattr(default, name), usual) for name, _, usual, _ in _fields(type(default))]
        changed = {name: value for name, value, usual in held if name == "law" or value != usual}
        return f"`{{{', '.join(f'{name}: {_plain(value)}' for name, value in changed.items())}}}`"
    return f"`{_plain(default)}`"


def classes_in(kind: type) -> list[type]:
    """A class and all with a table that its fields may hold, each once, outer ones first."""
    found = [kind]
    for each in found:  # grows while it is walked
        for _, annotation, _, _ in _fields(each):
            found += [inner for inner in _inner(annotation) if inner not in found]
    return found


def _parts() -> list[type]:
    reached = [part for kind in [*OBJECTIVES.values(), *SOURCES.values()] for part in classes_in(kind)[1:]]
    return list(dict.fromkeys(reached))


def _named(name: str, kind: type) -> list[str]:
    return [section(kind, level=3, title=f"`{name}`")]


def _fields(kind: type) -> Iterator[tuple[str, Any, Any, str]]:
    """(name, annotation with its bounds, default, description) of each field."""
    if known := _described(kind):
        for name, info in known.items():
            yield name, _annotated(info), _default(info), info.description or ""
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind) if is_dataclass(kind) else ():
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        yield field.name, hints[field.name], default, ""


def _described(kind: type) -> Mapping[str, FieldInfo]:
    """The fields of a pydantic model or pydantic dataclass, with what is said of each; empty for another class."""
    found: Mapping[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return found


def _annotated(info: FieldInfo) -> Any:
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})


def _names(kind: type) -> set[str]:
    return {name for name, *_ in _fields(kind)} if _has_table(kind) else set()


def _has_table(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _inner(annotation: Any) -> list[type]:
    if _has_table(annotation):
        return [annotation]
    args = () if get_origin(annotation) is Literal else get_args(annotation)
    return [kind for arg in args for kind in _inner(arg)]


def _said(kind: type, known: set[str]) -> Iterator[tuple[str, str]]:
    """Entries `name: text` or `name, name: text` of a docstring; lines indented further go on with the text."""
    names, depth, text = "", 0, ""
    for line in [*inspect.cleandoc(kind.__dict__.get("__doc__") or "").splitlines(), "end"]:
        entry, indent = _entry(line, known), len(line) - len(line.lstrip())
        if names and not entry and line.strip() and indent > depth:
            text += f" {line.strip()}"
            continue
        yield from ((name, _cell(text)) for name in names.split(", ") if names)
        names, depth, text = (entry["names"], indent, entry["text"]) if entry else ("", 0, "")


def _entry(line: str, known: set[str]) -> re.Match[str] | None:
    match = ENTRY.match(line)
    return match if match and set(match["names"].split(", ")) <= known else None


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bounded(words: str, extras: Sequence[Any]) -> str:
    limits = [part for extra in extras for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    found = [(word, getattr(limit, key, None)) for limit in limits for key, word in BOUNDS.items()]
    return ", ".join([words, *(f"{word} {value}" for word, value in found if value is not None)])


def _either(words: Sequence[str]) -> str:
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or says which differ."""
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        print(*(f"{path.name} is not what the code says: run python docs/generate.py" for path in stale), sep="\n")
        return bool(stale)
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
