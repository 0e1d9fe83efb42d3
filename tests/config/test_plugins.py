"""Objectives and sources of a user's own are named, checked and recorded as fastgen's own are."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import plugged
import pytest

from fastgen.cli import main
from fastgen.config.yaml_file import dump, fingerprint, load, save
from fastgen.data import SOURCE_KINDS
from fastgen.errors import UserError
from fastgen.objectives import OBJECTIVE_KINDS, ConsistencyTraining

RUN = """\
out: runs/x
teacher: {path: teachers/x}
data: {source: "squares.py:Squares", count: 40}
objective: {name: "mine.py:Mine", loudness: 2}
train: {images: 100}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a config and the files that it names."""
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "mine.py").write_text(plugged.OBJECTIVE)
    (tmp_path / "squares.py").write_text(plugged.SOURCE)
    return tmp_path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of `sys.path` for packages, which are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("louder", None)


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        load(file, overrides)
    return str(refused.value)


def test_a_file_is_found_beside_the_config_from_any_working_directory(place: Path):
    config = load(place / "run.yaml")
    (stage,) = config.stages
    assert isinstance(stage.objective, ConsistencyTraining)
    assert (stage.name, stage.objective.loudness, len(config.data)) == ("Mine", 2.0, 40)
    assert load(place / "run.yaml") == config, "an unchanged file is run once"


def test_the_class_may_be_left_out_where_it_is_the_only_one(place: Path):
    config = load(place / "run.yaml", ["objective.name=mine.py", "data.source=squares.py"])
    assert (type(config.stages[0].objective).__name__, type(config.data).__name__) == ("Mine", "Squares")
    assert config.stages[0].name == "mine"
    (place / "mine.py").rename(place / "my own.py")
    assert load(place / "run.yaml", ["objective.name=my own.py"]).stages[0].name == "my_own"


def test_a_resolved_config_names_the_file_in_full(place: Path, tmp_path_factory: pytest.TempPathFactory):
    config, elsewhere = load(place / "run.yaml"), tmp_path_factory.mktemp("elsewhere") / "resolved.yaml"
    elsewhere.write_text(dump(config))
    assert f"name: {place / 'mine.py'}:Mine" in dump(config)
    assert load(elsewhere) == config


def test_what_is_recorded_changes_with_the_content_and_not_with_the_folder(
    place: Path, tmp_path_factory: pytest.TempPathFactory
):
    before = fingerprint(load(place / "run.yaml"))
    digest = hashlib.sha256(plugged.OBJECTIVE.encode()).hexdigest()[:16]
    assert before["stages"][0]["objective"]["name"] == f"mine.py:Mine (sha256 {digest})"
    assert before["data"]["source"].startswith("squares.py:Squares (sha256 ")
    assert json.loads(json.dumps(before)) == before
    moved = tmp_path_factory.mktemp("moved")
    for file in place.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert fingerprint(load(moved / "run.yaml")) == before
    (place / "mine.py").write_text(plugged.OBJECTIVE + "\n# changed\n")
    assert fingerprint(load(place / "run.yaml")) != before


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_saved_config_brings_the_files_as_they_were_run(place: Path, tmp_path: Path, ends: str):
    (place / "mine.py").write_bytes(plugged.OBJECTIVE.replace("\n", ends).encode())
    config, out = load(place / "run.yaml"), tmp_path / "out"
    (place / "mine.py").write_text("raise RuntimeError")
    save(config, out)
    save(config, out)
    (place / "squares.py").unlink()
    assert fingerprint(load(out / "config.yaml")) == fingerprint(config)


def test_settings_are_checked_as_those_of_fastgens_own(place: Path):
    words = refusal(place / "run.yaml", "objective.loudnes=3", "data.count=0")
    assert "stages.0.objective.loudnes: no such setting; did you mean loudness?" in words
    assert "data.count: Input should be greater than or equal to 1 (got 0)" in words
    words = refusal(place / "run.yaml", "objective.loudness=loud")
    assert "stages.0.objective.loudness: Input should be a valid number" in words
    assert "less than or equal to 10 (got 11)" in refusal(place / "run.yaml", "objective.loudness=11")
    assert "data.count: this setting is required" in refusal(place / "run.yaml", 'data={source: "squares.py:Squares"}')
    assert "curriculum" in refusal(place / "run.yaml", "objective.curriculum={law: no}"), "those that it inherits"


HEAD = "from dataclasses import dataclass\nfrom fastgen.objectives import Needs\n"
WHOLE = HEAD + "@dataclass(frozen=True)\nclass Mine:\n  cycle = (('generator',),)\n  needs = Needs()\n"
BAD = {
    "no class": ("x = 1", "mine.py has no class 'Mine'; it defines no class"),
    "another class": ("class Mein: ...", "mine.py has no class 'Mine'; did you mean Mein?"),
    "a function": ("def Mine(): ...", "Mine in {file} is no class, but <function Mine"),
    "no dataclass": ("class Mine: ...", "Mine in {file} is no objective: it is no frozen dataclass"),
    "an heir without its own decorator": (
        plugged.OBJECTIVE.replace("@dataclass(frozen=True)\n", ""),
        "it is no frozen dataclass, write @dataclass(frozen=True) above it",
    ),
    "not frozen": (plugged.OBJECTIVE.replace("(frozen=True)", ""), "cannot inherit non-frozen dataclass"),
    "no objective": (HEAD + "@dataclass(frozen=True)\nclass Mine: ...", "it has no cycle, needs, generator"),
    "abstract": (
        "from abc import ABC, abstractmethod\n"
        + HEAD
        + "@dataclass(frozen=True)\nclass Mine(ABC):\n  @abstractmethod\n  def generator(self, r, b): ...\n",
        "is no objective: it is abstract, define generator",
    ),
    "syntax": ("def", "{file} cannot be run: SyntaxError: invalid syntax (line 1)"),
    "an import that fails": (
        "\nimport no_such_module",
        "ModuleNotFoundError: No module named 'no_such_module' (mine.py, line 2)",
    ),
    "a file beside it": ("import squares", "a file stands alone: put both in one, or install them as a package"),
    "an exit": ("import sys\n\nsys.exit(3)", "cannot be run: SystemExit: 3 (mine.py, line 3)"),
    "bytes": ("\0", "cannot be run: "),
    "a turn without a method": (
        WHOLE.replace("(('generator',),)", "(('generator',), ('fake_score',))") + "  def generator(self, r, b): ...\n",
        "has no method for its turn ('fake_score',)",
    ),
    "a cycle that fails": (
        WHOLE.replace("  cycle = (('generator',),)\n", "  @property\n  def cycle(self):\n    return self.turns\n")
        + "  def generator(self, r, b): ...\n",
        "mine.py:Mine cannot be used: AttributeError: 'Mine' object has no attribute 'turns' (mine.py, line 7)",
    ),
    "needs of words": (
        WHOLE.replace("Needs()", "frozenset({'images'})") + "  def generator(self, r, b): ...\n",
        "`needs` is frozenset({{'images'}}): give Needs(...)",
    ),
    "a setting of no type": (
        WHOLE + "  lodness: 'Loudness' = 1\n  def generator(self, r, b): ...\n",
        "mine.py:Mine cannot be used: ",
    ),
    "a check that fails": (
        WHOLE + "  def generator(self, r, b): ...\n  def __post_init__(self):\n    1 / 0\n",
        "mine.py:Mine cannot be used: ZeroDivisionError: division by zero (mine.py, line 9)",
    ),
    "a check that refuses": (
        WHOLE + "  def generator(self, r, b): ...\n  def __post_init__(self):\n    raise ValueError('too quiet')\n",
        "stages.0.objective: too quiet",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_told_with_its_place(place: Path, name: str):
    source, words = BAD[name]
    (place / "mine.py").write_text(source)
    told = refusal(place / "run.yaml", "objective={name: 'mine.py:Mine'}")
    assert "stages.0.objective: " in told
    assert words.format(file=place / "mine.py") in told
    assert told.count("\n") == 1


def test_beside_a_class_whose_types_cannot_be_read_other_mistakes_are_still_told(place: Path):
    (place / "mine.py").write_text(BAD["a setting of no type"][0])
    told = refusal(place / "run.yaml", "objective={name: 'mine.py:Mine'}", "lodnes=1", "sead=2")
    assert "mine.py:Mine cannot be used: " in told
    assert "lodnes: no such setting; did you mean lodness?" in told
    assert "sead: no such setting; did you mean seed?" in told


def test_a_file_that_is_not_there_is_told_with_the_nearest(place: Path):
    assert f"there is no file {place / 'mien.py'}; did you mean mine.py?" in refusal(
        place / "run.yaml", "objective.name=mien.py:Mine"
    )
    assert "its path is relative to the config" in refusal(place / "run.yaml", "objective.name=a/b.py:Mine")
    assert "known: pretrain, " in refusal(place / "run.yaml", "objective.name=zzz")
    assert "Squares in" in refusal(place / "run.yaml", "objective.name=squares.py:Squares")


@pytest.mark.parametrize("marker", ["model_index.json", "fastgen.json", "students.json", "4step/fastgen.json"])
def test_code_is_never_run_for_a_config_in_a_pipelines_folder(place: Path, marker: str):
    (place / "mine.py").write_text("raise RuntimeError")
    inner = place / "unet" / "configs"
    inner.mkdir(parents=True)
    (inner / "run.yaml").write_text(RUN.replace("mine.py", "../../mine.py"))
    (place / marker).parent.mkdir(exist_ok=True)
    (place / marker).write_text("{}")
    for file in (place / "run.yaml", inner / "run.yaml"):
        told = refusal(file, f"objective.name={place / 'mine.py'}:Mine")
        assert f"lies within a pipeline's folder, {place}, which may have been downloaded: nothing was run" in told


def test_code_is_never_run_for_a_config_in_the_hubs_cache(place: Path, monkeypatch: pytest.MonkeyPatch):
    (place / "mine.py").write_text("raise RuntimeError")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place.parent))
    assert "may have been downloaded: nothing was run" in refusal(place / "run.yaml")


def test_a_package_offers_both(place: Path, site: Path):
    plugged.package(site)
    config = load(place / "run.yaml", ["objective.name=loud", "data.source=squares"])
    assert (config.stages[0].name, config.stages[0].objective.loudness, len(config.data)) == ("loud", 2.0, 40)
    digest = hashlib.sha256((site / "louder.py").read_bytes()).hexdigest()[:16]
    assert fingerprint(config)["data"]["source"] == f"squares (louder 1.0, louder:Squares, sha256 {digest})"
    (place / "resolved.yaml").write_text(dump(config))
    assert load(place / "resolved.yaml") == config
    assert "did you mean loud?" in refusal(place / "run.yaml", "objective.name=luod")


def test_a_package_that_cannot_be_used_is_named(place: Path, site: Path):
    plugged.package(site)
    (site / "louder.py").write_text("import no_such_module")
    told = refusal(place / "run.yaml", "objective.name=loud", "data={source: noise}")
    assert "the objective 'loud' of louder 1.0 cannot be imported: ModuleNotFoundError: No module" in told
    plugged.package(site, name="other")
    assert "is offered by louder 1.0 and by other 1.0: uninstall one" in refusal(
        place / "run.yaml", "objective.name=loud"
    ) or "is offered by other 1.0 and by louder 1.0" in refusal(place / "run.yaml", "objective.name=loud")


def test_a_name_of_fastgens_own_cannot_be_taken(site: Path):
    plugged.package(site)
    entries = site / "louder-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text().replace("loud =", "ct =").replace("squares =", "noise ="))
    assert OBJECTIVE_KINDS.find("ct") is ConsistencyTraining
    assert SOURCE_KINDS.find("noise").__module__ == "fastgen.data.prompts"


def test_the_plan_says_where_code_came_from(place: Path, capsys: pytest.CaptureFixture[str]):
    main(["train", "--config", str(place / "run.yaml"), "--dry-run"])
    told = capsys.readouterr().out
    for kind, name in (("objective", "mine.py:Mine"), ("data", "squares.py:Squares")):
        assert (
            f"{kind}: {name} (sha256 {hashlib.sha256((place / name.split(':')[0]).read_bytes()).hexdigest()[:16]})"
            in told
        )


def test_what_a_source_leaves_out_has_the_usual_values(place: Path):
    source = load(place / "run.yaml").data
    assert (source.shapes, source.bucket, source.sequential, source.captions, source.reads) == (
        (),
        None,
        None,
        None,
        (),
    )
    assert source.named(3) == "item 3"
    told = source.without_images([3, 4])
    assert (told.images, told.labels.tolist()) == (None, [3, 4])


def test_what_a_source_has_itself_stays(place: Path):
    file = place / "squares.py"
    told = "reads = ()\n    prompts = None\n\n    def named(self, index):\n        return f'square {index}'\n"
    file.write_text(file.read_text().replace("prompts = None\n", told))
    assert load(place / "run.yaml").data.named(3) == "square 3"


def test_an_object_given_from_python_has_them_too(place: Path):
    @dataclass(frozen=True)
    class Short:
        prompts = ("a", "b")
        has_images, num_classes, check, items = False, None, None, None

        def __len__(self):
            return 2

    config = load(place / "run.yaml")
    given = config.model_validate({**dict(config), "data": Short(), "stages": config.stages})
    assert list(given.data.captions) == ["a", "b"]


def test_an_object_of_ones_own_can_be_given_from_python(place: Path):
    config = load(place / "run.yaml")
    given = config.model_validate({**dict(config), "data": config.data, "stages": config.stages})
    assert given == config
    with pytest.raises(ValueError, match="give a mapping with `source`"):
        config.model_validate({**dict(config), "data": SimpleNamespace(items=1)})
