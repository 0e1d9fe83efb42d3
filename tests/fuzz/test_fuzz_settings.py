"""Configs, overrides and command lines that nobody would write are taken or refused in words, never more."""

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fuzzing import ODD_TEXTS, changed, fuzz, json_texts, mutated, odd_values
from hypothesis import strategies as st

from fastgen import cli
from fastgen.config.yaml_file import dump, load
from fastgen.distillation.checks import check_stages
from fastgen.errors import UserError

CONFIGS: list[dict[str, Any]] = [
    {
        "out": "runs/x",
        "teacher": {"path": "teachers/x", "loras": [{"path": "a.safetensors", "weight": 0.5}]},
        "student": {"steps": [1, 4], "sampler": "renoise", "height": 64},
        "data": {"source": "noise", "num_classes": 3},
        "stages": [
            {
                "objective": {
                    "name": "dmd2",
                    "ratio": 5,
                    "guidance": {"law": "fixed", "scale": 1.5},
                    "times": {"law": "uniform", "low": 0.1},
                    "gan": {"weight": 0.1, "kind": "logistic", "paired": False},
                },
                "train": {"images": 1000, "batch": 8, "optim": {"lr": 1e-4, "betas": [0.0, 0.99]}},
            },
            {"objective": {"name": "kd"}, "train": {"images": 1e3, "roles": {"generator": {"lr": 1e-5}}}},
        ],
    },
    {
        "out": "runs/t",
        "teacher": {"new": {"pipeline": "DDPMPipeline", "parts": {"unet": {"class": "UNet2DModel"}}}},
        "data": {"source": "folder", "path": "images", "size": 8},
        "objective": {"name": "pretrain"},
        "train": {"images": 100, "ema": 0.9},
        "export": {"path": "x"},
    },
    {
        "out": "runs/y",
        "teacher": {"path": "a/b"},
        "data": {"prompts": "prompts.txt"},
        "objective": {"name": "lcm"},
        "sharing": "lora",
        "lora": {"rank": 8, "targets": ["to_q"]},
        "train": {"images": 10},
        "pairs": {"count": 4},
        "evaluate": {"every": 100},
    },
]


def taken(config: Any) -> None:
    """What is done with a config before anything is loaded."""
    check_stages(config)
    dump(config)


@fuzz(changed(*CONFIGS), few=8)
def test_configs(case: Any) -> None:
    if isinstance(case, dict):
        taken(load(case))


@fuzz(json_texts(*CONFIGS) | mutated(*(json.dumps(config, indent=1).encode() for config in CONFIGS)), few=8)
def test_config_files(case: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(case)
    taken(load(tmp_path / "run.yaml"))


def paths_in(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(inner for key, one in pairs for inner in paths_in(one, f"{path}.{key}"))]
    return [path]


PATHS = [path[1:] for config in CONFIGS for path in paths_in(config) if path]
OVERRIDES = st.tuples(
    st.sampled_from([*PATHS, "", ".", "a.b", "stages.-1", "out.x"]), st.sampled_from(["", ".x", ".0"])
)
VALUES = st.sampled_from(["{", "[]", "!!python/name:os.system", "*a", "010", "nan", "a: b: c", *ODD_TEXTS])


@fuzz(st.lists(st.tuples(OVERRIDES, VALUES | odd_values.map(json.dumps)), min_size=1, max_size=3))
def test_overrides(case: list[tuple[tuple[str, str], str]]) -> None:
    taken(load(CONFIGS[0], [f"{path}{more}={value}" for (path, more), value in case]))


LINES = (
    "train --config run.yaml --resume --dry-run train.images=10",
    "train --config run.yaml --find-batch --allow-changed teacher",
    "plan run.yaml --gpus 2 --memory 24 --card h100 train.batch=4",
    "sample teacher --num 4 --seed 1 --labels 0-3 --steps 2 --guidance 1.5 --out s --batch-size 2",
    "sample --student teacher --prompts prompts.txt --prompt cat --height 64 --dtype bf16 --out s",
    "eval --student teacher --reference images --num-images 4 --steps 1 4 --seed 0 --out e --assert fid[4]<5",
    "eval --student images --protocol digits --metrics fid --workers 1 --allow-small --out e",
    "verify teacher --lora --base teacher --stack none --device cpu",
    "card teacher --report e --samples s --pictures 4",
    "prove dmd2 --process flow --quick",
    "list objectives",
    "init digits/dmd2_1step new.yaml",
    "init --pipeline a/b --memory 24 --prompts prompts.txt --steps 4,1 --prefer speed",
    "watch run --port 0",
    "demo teacher --teacher a/b --teacher-steps 20",
    "doctor --out run --json",
    "completion bash",
)
WORDS = (
    *("1", "-1", "0", "4,1", "0-9", "0-99999999999", "nan", "2e3", "--", "a=b", "fid[4] < 5", "a/b", "~", "."),
    *("meta", "cuda:99", "auto", "run.yaml", "prompts.txt", "images", "teacher", "missing", "prompts.txt/x"),
)


@cache
def options(command: str) -> tuple[str, ...]:
    """All that a command may be told by name."""
    parser = cli._parser(command, import_module(cli.COMMANDS[command].module))
    return tuple(name for action in parser._actions for name in action.option_strings)


odd_words = st.sampled_from([*WORDS, *ODD_TEXTS])


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A line that could stand in the documentation, with up to four of its words replaced, left out or added."""
    name, *words = draw(st.sampled_from(LINES)).split()
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(words)))
        new = draw(st.sampled_from(options(name)) | odd_words)
        words[place : place + draw(st.integers(0, 1))] = [new] * draw(st.integers(0, 1))
    return [name, *words]


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands stop where a pipeline would be loaded, an objective proved or a page served."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise UserError("here the work would begin")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(dump(load({**CONFIGS[2], "teacher": {"path": "/nowhere"}})))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    for folder in ("images", "teacher", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "teacher" / "README.md").write_text("---\ntags: [a]\n---\nA student.\n")
    for place in (
        "fastgen.sampling.gallery.fill",
        "fastgen.sampling.drawer.side_by_side",
        "eval.evaluate.open_session",
        "eval.watch.server.Watcher",
        "fastgen.distillation.costs.costs",
        "fastgen.distillation.distil.distil",
        "fastgen.distillation.machine.examined",
        "fastgen.distillation.presets.choose",
        "fastgen.distillation.trials.find_batches",
        "fastgen.export.rebuild.verify_folder",
        "fastgen.export.rebuild.verify_lora",
        "fastgen.proofs.prove.proved",
    ):
        monkeypatch.setattr(place, stop)


@fuzz(command_lines(), few=15)
def test_command_lines(case: list[str], nothing_is_done: None, capsys: pytest.CaptureFixture) -> None:
    try:
        code = cli.main(case)
    except SystemExit as error:
        code = error.code
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
