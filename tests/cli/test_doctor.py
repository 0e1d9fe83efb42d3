"""`fastgen doctor`: what this machine brings, and whether a run could start on it; no secret in what it says."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fastgen.cli import main
from fastgen.distillation import machine

ROOT = Path(__file__).parents[2]
CANARY = "hf_" + "CanaryCanaryCanary"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(machine, "get_token", lambda: None)


def told(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_a_machine_that_could_train_is_told_so_in_text_and_json(capsys, tmp_path):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^  torch +{re.escape(metadata.version('torch'))}$", text, re.M)
    assert text.endswith("a run could start here\n")
    code, found = told(capsys)
    assert (code, found["ready"], found["problems"]) == (0, True, [])
    assert found.keys() >= {"packages", "extras", "devices", "kernels", "memory and disks", "hub"}
    assert (found["devices"].get("GPU") is None) == torch.cuda.is_available()
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_every_requirement_is_looked_at_and_every_extra_explained(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", text)[0] for text in project["dependencies"]}
    required = [machine.Requirement(text) for text in project["dependencies"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.metadata, "requires", lambda _: [str(one) for one in required])
        _, found = told(capsys)
    assert found["packages"].keys() - {"python", "fastgen"} == needed
    assert machine.EXTRAS.keys() >= project["optional-dependencies"].keys()


def test_a_package_that_is_missing_or_too_old_is_in_the_way(capsys, monkeypatch):
    monkeypatch.setattr(
        machine.metadata, "requires", lambda _: ["torch>=99", "no-such-package>=1", 'x>2; extra == "dev"']
    )
    code, found = told(capsys)
    assert (code, found["ready"]) == (2, False)
    version = metadata.version("torch")
    assert found["problems"] == [
        f"torch {version} is not >=99: pip install 'torch>=99'",
        "no-such-package is not installed: pip install 'no-such-package>=1'",
    ]
    assert found["packages"]["no-such-package"] == "missing"
    assert "missing x: pip install 'fastgen[dev]'" in found["extras"]["dev"]
    assert main(["doctor"]) == 2
    assert "2 in the way of a run" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_in_the_way(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, found = told(capsys, "--out", "file/run")
    assert code == 2
    assert "is a file: give a folder" in found["problems"][0]


@pytest.mark.parametrize("offline", [False, True])
def test_a_token_is_never_shown(capsys, monkeypatch, offline):
    def refused(token: str) -> dict[str, str]:
        raise OSError(f"401 for {token}")

    monkeypatch.setattr(machine, "get_token", lambda: CANARY)
    monkeypatch.setattr(machine, "whoami", refused)
    monkeypatch.setattr(machine.constants, "HF_HUB_OFFLINE", offline)
    assert main(["doctor"]) == 0
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    assert ("the hub was not asked" if offline else "does not confirm it (401 for ***)") in " ".join(said.out.split())
    monkeypatch.setattr(machine, "whoami", lambda token: {"name": "a-name"})
    _, found = told(capsys)
    assert found["hub"]["login"] == ("a-name" if not offline else found["hub"]["login"])
