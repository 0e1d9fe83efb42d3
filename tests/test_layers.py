"""The tree's own rules, read from the source: who imports whom, nothing unsafe, no module that outgrew its page."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "fastgen").rglob("*.py"), *(ROOT / "eval").rglob("*.py")])
MOST_LINES = 320

GROUND = {
    "command",
    "contents",
    "disk",
    "errors",
    "files",
    "limits",
    "lock",
    "manifest",
    "peers",
    "plugins",
    "redaction",
    "seeds",
    "standing",
    "stopping",
    "unread",
    "user_file",
}
MAY_IMPORT = {  # room -> what it may import of ours, besides itself
    "process": {"seeds"},
    "data": GROUND,
    "models": {"process", *GROUND},
    "objectives": {"models", "process", *GROUND},
    "sampling": {"objectives.parts", "models", "process", "data", *GROUND},
    "config": {"objectives", "models", "process", "data", *GROUND},
    "export": {"sampling", "models", "process", *GROUND},
    "engine": {"config", "sampling", "objectives", "models", "process", "data", *GROUND},
    "planning": {"engine", "config", "objectives", "models", "process", *GROUND},
    "proofs": {"engine", "objectives", "models", "process", *GROUND},
}
OUT_OF_BOUNDS = {"objectives": {"models.pipelines"}}  # room -> what it must not import of what its line above allows
EVAL_MAY_IMPORT = {"models.pipelines", "sampling", "data", *GROUND}
MONITOR = "fastgen.distillation.monitor"  # the one door to eval
CONDUCTORS = ("fastgen.cli", "fastgen.distillation")  # nobody else imports a distillation
FACE = "fastgen"  # names what is in the rooms, and imports none of it before it is asked
LATE = {  # (who, what it imports when a function runs) -> why not at its top
    ("fastgen.cli", ""): "a command answers --help before it loads what it works with",
    ("eval.cli", "eval.evaluate"): "it brings torch, which --help does without",
    ("fastgen.distillation.distil", "fastgen.distillation.monitor"): "all of eval, for a run that is measured alone",
    ("fastgen.distillation.preflight", "fastgen.distillation.monitor"): "likewise",
    ("fastgen.data.hub", "datasets"): "an optional package",
    ("fastgen.data.digits", "sklearn"): "slow to load, and most runs read other data",
    ("fastgen.distillation.several", "sklearn"): "likewise, and most runs divide nothing",
    ("fastgen.engine.stepper", "fastgen.engine.kernels"): "of Triton, which not every PyTorch brings",
    ("fastgen.models.quantised", "bitsandbytes"): "an optional package",
    ("fastgen.models.pipelines.perceptual", "torchmetrics"): "an optional package",
    ("fastgen.export.export", "transformers.conversion_mapping"): "its first versions have no such module",
}
UNSAFE = ("torch.load", "pickle.load", "pickle.loads", "eval", "exec", "yaml.unsafe_load", "yaml.full_load")


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported only when a function runs, or for type checkers alone."""

    of: str
    target: str
    late: bool = False
    typed: bool = False

    @property
    def lazy(self) -> bool:
        return self.late or self.typed

    def __str__(self) -> str:
        return f"{self.of} -> {self.target}"


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> list[Import]:
    tree, name = ast.parse(file.read_text(encoding="utf-8")), dotted(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    late, typed = inside(tree, is_function), inside(tree, is_for_types)
    return [
        Import(name, target, id(node) in late, id(node) in typed)
        for node in ast.walk(tree)
        for target in targets(node, package)
    ]


def inside(tree: ast.AST, block: Callable[[ast.AST], bool]) -> set[int]:
    """What lies within such blocks, by identity."""
    return {id(node) for found in ast.walk(tree) if block(found) for node in ast.walk(found)}


def is_function(block: ast.AST) -> bool:
    return isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))


def is_for_types(block: ast.AST) -> bool:
    return isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"


def targets(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (above, node.module) if part)
        for alias in node.names:  # `from ..sampling import stock` is an import of sampling.stock
            inner = ROOT.joinpath(*source.split("."), alias.name)
            yield f"{source}.{alias.name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else source


@cache
def all_imports() -> list[Import]:
    """Read once, and by no worker that has none of these tests."""
    return [found for file in MODULES for found in imports(file)]


def of_ours() -> list[Import]:
    return [found for found in all_imports() if found.target.split(".")[0] in ("fastgen", "eval")]


def ours() -> list[Import]:
    return [found for found in of_ours() if found.of != FACE]


def within(name: str, layers: set[str]) -> bool:
    return any(f"{name}.".startswith(f"fastgen.{layer}.") for layer in layers)


def told(imports: list[Import]) -> str:
    return ", ".join(map(str, imports))


def test_the_reader_sees_absolute_relative_and_lazy_imports():
    seen = {(found.of, found.target, found.lazy) for found in all_imports()}
    assert ("fastgen.engine.stage", "fastgen.objectives", False) in seen
    assert ("fastgen.engine.checkpoint", "fastgen.files", False) in seen
    assert ("fastgen.sampling.gallery", "fastgen.sampling.stock", False) in seen
    assert ("fastgen.cli.train", "fastgen.distillation.distil", True) in seen
    assert ("fastgen.objectives", "fastgen.objectives.distribution.dmd2", False) in seen


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_those_below_it(room):
    leaving = [i for i in ours() if within(i.of, {room}) and not within(i.target, {room, *MAY_IMPORT[room]})]
    assert not leaving, told(leaving)


def test_the_face_imports_no_room_before_it_is_asked():
    shown = [i for i in of_ours() if i.of == FACE]
    assert shown
    eager = [i for i in shown if not i.lazy]
    assert not eager, told(eager)


@pytest.mark.parametrize("room", OUT_OF_BOUNDS)
def test_a_room_stays_out_of(room):
    inside = [i for i in ours() if within(i.of, {room}) and within(i.target, OUT_OF_BOUNDS[room])]
    assert not inside, told(inside)


def test_networks_know_nothing_of_stock_pipelines():
    networks = [i for i in ours() if within(i.of, {"models"}) and not within(i.of, {"models.pipelines"})]
    assert networks
    knowing = [i for i in networks if within(i.target, {"models.pipelines"})]
    assert not knowing, told(knowing)


def test_only_the_command_line_imports_a_distillation():
    of_it = [i for i in ours() if within(i.target, {"distillation"})]
    assert of_it
    others = [i for i in of_it if not i.of.startswith(CONDUCTORS)]
    assert not others, told(others)


def test_evaluation_imports_what_it_measures_and_the_ground():
    by_eval = [i for i in ours() if i.of.startswith("eval") and i.target.startswith("fastgen")]
    assert by_eval
    others = [i for i in by_eval if not within(i.target, EVAL_MAY_IMPORT)]
    assert not others, told(others)


def test_evaluation_is_imported_only_when_it_is_asked_for():
    of_eval = [i for i in ours() if i.of.startswith("fastgen") and i.target.split(".")[0] == "eval"]
    assert of_eval
    eager = [i for i in of_eval if not (i.of.startswith(MONITOR) or (i.lazy and i.of.startswith(CONDUCTORS[0])))]
    assert not eager, told(eager)
    of_the_monitor = [i for i in ours() if i.target.startswith(MONITOR) and not i.of.startswith(MONITOR)]
    assert any(i.late for i in of_the_monitor)
    assert all(i.lazy for i in of_the_monitor), told(of_the_monitor)


def reason(late: Import) -> tuple[str, str] | None:
    """The entry of `LATE` that an import within a function has."""
    return next((key for key in LATE if all(map(str.startswith, (late.of, late.target), key))), None)


def test_what_a_function_imports_has_its_reason():
    late = [i for i in all_imports() if i.late]
    unexplained = [i for i in late if reason(i) is None]
    assert not unexplained, told(unexplained)
    assert set(LATE) == set(map(reason, late)), "a reason for nothing"


def test_imports_within_a_package_are_relative():
    found = [(file, node) for file in MODULES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    froms = [(dotted(file).split(".")[0], node) for file, node in found if isinstance(node, ast.ImportFrom)]
    absolute = [
        f"{package}: {ast.unparse(node)}"
        for package, node in froms
        if f"{node.module}.".startswith(f"{package}.") and not node.level
    ]
    assert not absolute, absolute


def test_the_maths_needs_no_diffusers():
    names = "{'diffusers', 'transformers', 'accelerate'}"
    code = f"import sys, fastgen.process, fastgen.objectives; print(*{names} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not shown.stdout.split()


def unsafe_calls(source: str) -> list[str]:
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        loader = options.get("Loader", ast.unparse(call.args[1]) if len(call.args) > 1 else "none")
        restricted = name == "torch.load" and options.get("weights_only") == "True"  # tensors only, no code
        if (
            (name in UNSAFE and not restricted)
            or (name == "yaml.load" and loader not in ("_Loader", "yaml.SafeLoader"))
            or options.get("allow_pickle", "False") != "False"
            or options.get("trust_remote_code", "False") != "False"
            or options.get("shell", "False") != "False"
        ):
            found.append(ast.unparse(call))
    return found


def test_no_file_can_run_code():
    found = [f"{dotted(file)}: {call}" for file in MODULES for call in unsafe_calls(file.read_text(encoding="utf-8"))]
    assert not found, "; ".join(found)


@pytest.mark.parametrize(
    "call",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "pickle.load(f)",
        "yaml.load(s)",
        "yaml.load(s, yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "eval(s)",
        "AutoModel.from_pretrained(f, trust_remote_code=True)",
        "subprocess.run(s, shell=True)",
    ],
)
def test_the_search_for_unsafe_calls_finds(call):
    assert unsafe_calls(f"def f():\n    return {call}") == [call]


def said(source: str) -> list[str]:
    """Calls that put something on the terminal, or on a channel that is not the log's."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if ast.unparse(call.func) in ("print", "warnings.warn")]


def test_only_commands_print():
    sources = {dotted(file): file.read_text(encoding="utf-8") for file in MODULES}
    library = {
        name: source
        for name, source in sources.items()
        if not name.startswith(("fastgen.cli", "fastgen.command")) and "def main(" not in source
    }
    assert not {name: said(source) for name, source in library.items() if said(source)}
    assert said("import warnings\nwarnings.warn('a')\nprint('b')") == ["warnings.warn('a')", "print('b')"]


def test_one_function_suggests_what_was_meant():
    assert {i.of for i in all_imports() if i.target.startswith("difflib")} == {"fastgen.errors"}


def test_no_test_file_imports_another():
    """What two share is a builder in support/ or a check in checks/."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(tests) > 100
    names = {file.stem for file in tests}
    taken = [i for file in tests for i in imports(file) if i.target.split(".")[0] in names]
    assert not taken, told(taken)


def test_every_test_file_has_a_name_of_its_own():
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name not in ("__init__.py", "conftest.py")]
    assert sorted(set(names)) == sorted(names)


def test_every_module_fits_on_its_page():
    lengths = {dotted(file): len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert not {name: count for name, count in lengths.items() if count > MOST_LINES}
