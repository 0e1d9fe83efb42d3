"""Exports in an environment of earlier versions: a process there samples them as our sampler does here."""

import os
from types import SimpleNamespace

import pytest
from families import FAMILIES
from published import publish

from fastgen.cli import main
from fastgen.export import lora, rebuild, verify

INSTALL = (
    "python -m venv old && old/bin/pip install torch diffusers==0.35.* transformers==4.57.* peft==0.17.* accelerate "
    "sentencepiece && export FASTGEN_OLD_CLIENT=$PWD/old/bin/python"
)
RUN = """
out: {here}/run
device: cpu
cache: null
teacher: {{path: {here}/teacher}}
student: {{steps: [2], height: 16, width: 16}}
data: {{source: prompts, path: {here}/prompts.txt}}
sharing: lora
lora: {{rank: 4, alpha: 1}}
objective: {{name: dmd2, gan: 0, ratio: 1, guidance: 2.0}}
train: {{images: 8, batch: 2, precision: bf16, optim: {{lr: 1.0e-2}}}}
log: {{trackers: [], previews: 0}}
"""


@pytest.fixture
def old_client(monkeypatch) -> None:
    """Exports are verified by a process of those versions."""
    python = os.environ.get("FASTGEN_OLD_CLIENT")
    if not python:
        pytest.skip(f"FASTGEN_OLD_CLIENT is not set: {INSTALL}")
    monkeypatch.setattr(verify, "sys", SimpleNamespace(executable=python))


@pytest.mark.slow
@pytest.mark.usefixtures("old_client")
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "flux"])
def test_an_earlier_client_samples_students_and_loras_as_they_were_trained(tmp_path, name, monkeypatch, capsys):
    publish(FAMILIES[name].build(), tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a red fox\nblue jay\n")
    (tmp_path / "run.yaml").write_text(RUN.format(here=tmp_path))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0  # verifies both exports with the old client
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verified")]
    assert len(told) == 2
    with capsys.disabled():
        print("", *(line.replace(str(tmp_path), name) for line in told), sep="\n")
    if name == "flux":  # Diffusers reads its first names in the real width alone
        return
    written = lora.written
    monkeypatch.setattr(rebuild, "written", lambda pipe, folder, _: written(pipe, folder, "kohya"))
    (agreement,) = rebuild.verify_lora(tmp_path / "run/student-lora", str(tmp_path / "teacher"))
    assert agreement.difference <= 1e-5
    with capsys.disabled():
        print(f"verified {name}, Kohya keys: difference {agreement.difference:.1e}")
