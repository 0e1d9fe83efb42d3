"""Pages and tables that follow from the code, so that they cannot say anything else.

python docs/generate.py            writes them
python docs/generate.py --check    fails where a page is not what would be written
"""

import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from class_tables import classes_in, model_page, section
from results_pages import results

from eval.metrics_json import Report
from fastgen.config.schema import Config
from fastgen.config.shipped import shipped
from fastgen.config.yaml_file import load
from fastgen.data import SOURCES
from fastgen.models.pipelines.rewards import REWARDS
from fastgen.objectives import OBJECTIVES

DOCS = Path(__file__).parent
NOTEBOOK, CONTRIBUTING = DOCS.parent / "notebooks/own_objective.ipynb", DOCS.parent / "CONTRIBUTING.md"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")


ABOUT_SETTINGS = """# Settings

<!-- Written by `python docs/generate.py` from the code: change the docstrings there. -->

All settings of a config. On the command line, a dotted path changes one: `fastgen train --config FILE train.batch=64`.
A wrong name or value is an error that names the right one. Short forms: a top-level `objective` is a single stage;
`train` at the top applies to every stage, whose own `train` changes it; `data.prompts=FILE` is a source of prompts.
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


ABOUT_REWARDS = """## Rewards

`rewards` and `judges` of a stage: `{name: NAME, ...}` with the settings of that name, or a list of
them, each with a `weight`.
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


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "configs.md": configs_page(),
        NOTEBOOK: own_objective(*(path.read_text(encoding="utf-8") for path in (NOTEBOOK, CONTRIBUTING))),
        DOCS / "metrics.md": f"{ABOUT_REPORTS}\n{model_page(Report)}\n",
        DOCS / "metrics_schema.json": json.dumps(Report.model_json_schema(), indent=1) + "\n",
        **results(),
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
        ABOUT_REWARDS,
        *(part for name, kind in REWARDS.items() for part in _named(name, kind)),
        ABOUT_PARTS,
        *(section(kind, level=3) for kind in _parts()),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def documented() -> list[type]:
    """Every class that has a table of settings."""
    return [*classes_in(Config), *OBJECTIVES.values(), *SOURCES.values(), *REWARDS.values(), *_parts()]


def _parts() -> list[type]:
    reached = [part for kind in [*OBJECTIVES.values(), *SOURCES.values()] for part in classes_in(kind)[1:]]
    return list(dict.fromkeys(reached))


def _named(name: str, kind: type) -> list[str]:
    return [section(kind, level=3, title=f"`{name}`")]


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
