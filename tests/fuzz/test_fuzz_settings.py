"""Configs, overrides and command lines that nobody would write are taken or refused in words, never more."""

import json
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


OPTIONS = {
    "train": ["--config", "--resume", "--dry-run"],
    "plan": ["--gpus", "--card", "--memory"],
    "sample": [
        *("--student", "--num-images", "--seed", "--labels", "--prompt", "--prompts", "--steps", "--guidance", "--out"),
        *("--negative-prompt", "--height", "--frames", "--batch-size", "--device", "--dtype", "--stack", "--base"),
    ],
    "eval": [
        *("--student", "--reference", "--held-out", "--protocol", "--extractor", "--extractor-size", "--metrics"),
        *("--extractor-range", "--steps", "--seed", "--seeds", "--num-images", "--labels", "--prompts", "--assert"),
        *("--reward", "--save-stats", "--out", "--gallery", "--device", "--workers", "--teacher-steps", "--overwrite"),
    ],
    "verify": ["--lora", "--stack", "--device", "--base", "--push"],
    "list": [],
    "init": [],
    "prove": [],
}
WORDS = (
    "1",
    "-1",
    "0",
    "4,1",
    "0-9",
    "0-99999999999",
    "meta",
    "cuda:99",
    "auto",
    "a=b",
    "fid[4] < 5",
    "nan",
    "2e3",
    "--",
    "a/b",
)
ARGUMENTS = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            st.sampled_from([*OPTIONS[name], *WORDS, *(text for text in ODD_TEXTS if "\0" not in text)]), max_size=8
        ),
    )
)


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands stop where a pipeline would be loaded, or an objective proved."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise UserError("here a pipeline would be loaded")

    monkeypatch.chdir(tmp_path)
    for place in (
        "fastgen.sampling.gallery.fill",
        "eval.evaluate.open_session",
        "fastgen.distillation.distil.distil",
        "fastgen.export.rebuild.verify_folder",
        "fastgen.export.rebuild.verify_lora",
        "fastgen.proofs.prove.proved",
    ):
        monkeypatch.setattr(place, stop)


@fuzz(ARGUMENTS, few=15)
def test_command_lines(case: tuple[str, list[str]], nothing_is_done: None, capsys: pytest.CaptureFixture) -> None:
    name, words = case
    try:
        code = cli.main([name, *words])
    except SystemExit as error:
        code = error.code
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
