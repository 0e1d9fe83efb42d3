"""A newcomer's path on a tiny pipeline: doctor, init, plan, train, watch, sample, eval, demo, card, push."""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import fake_hub
import numpy as np
import pytest
import tiny
from eval_place import EXTRACTOR_OPTIONS, save_extractor
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image

from fastgen.cli import main
from fastgen.export import export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # a minute and more of one core
SMALL = ["train.images=4", "train.batch=2", "train.micro_batch=2", "device=cpu", "log.previews=1", "cache=null"]
STOCK = """
import sys
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained(sys.argv[1])("a fox", num_inference_steps=2)
"""
EXACT = ["train.precision=fp32", "train.optim.warmup=0", "train.optim.lr=1e-2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a pipeline, prompts, and a few real pictures."""
    tiny.stable_diffusion().save_pretrained(tmp_path / "mine")
    (tmp_path / "prompts.txt").write_text("a red fox\na blue jay\n")
    (tmp_path / "real").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (10, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "real" / f"{i}.png")
    save_extractor(tmp_path / "extractor")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "NewcomerNewcomer1")
    return tmp_path


def told(*arguments: str) -> None:
    assert main(list(arguments)) == 0, f"fastgen {' '.join(arguments)}"


def page_of(*arguments: str) -> str:
    """What `fastgen watch` or `demo` serves at the address that it prints; it ends by Ctrl-C."""
    command = [sys.executable, "-c", "from fastgen.cli import entry; entry()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(
                found for line in server.stdout if (found := re.search(r"is at (http://127\.0\.0\.1\S+)", line))
            )
            with urlopen(address[1], timeout=60) as answer:
                page = answer.read().decode()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130)
    return page


def test_a_newcomer_comes_from_a_pipeline_to_a_student_on_the_hub(here, monkeypatch, capsys, verified_here):
    told("doctor", "--json")
    told("init", "--pipeline", "mine", "--memory", "12", "--height", "16", "--width", "16", "--steps", "2", "run.yaml")
    told("plan", "run.yaml", "--memory", "12")
    assert "fits 12 GiB" in capsys.readouterr().out
    told("train", "--config", "run.yaml", *SMALL, *EXACT, "--dry-run")
    told("train", "--config", "run.yaml", *SMALL, *EXACT)
    run = Path("runs/mine_2step")
    assert {"student", "student-lora"} <= {path.name for path in run.iterdir()}

    watched = page_of("watch", str(run))
    assert "mine" in watched
    assert watched.count("<img") >= 2, "pictures of teacher and student"

    told("sample", str(run / "student"), "--prompts", "prompts.txt", "--out", "samples", "--device", "cpu")
    told(
        *("eval", "--student", str(run / "student"), "--steps", "2", "--prompts", "prompts.txt", "--device", "cpu"),
        *("--teacher", "mine", "--teacher-steps", "3", "--reference", "real", "--extractor", "extractor"),
        *(*EXTRACTOR_OPTIONS, "--num-images", "10", "--allow-small", "--out", "report"),
    )
    if find_spec("gradio"):
        demo = page_of("demo", str(run / "student"), "--teacher", "mine", "--device", "cpu", "--port", "7871")
        assert "student: steps and time" in demo
        assert "teacher: steps and time" in demo
    for name in ("student", "student-lora"):
        told("card", str(run / name), "--report", "report", "--samples", "samples")
    card = ModelCard.load(run / "student-lora" / "README.md")
    assert card.data.eval_results
    assert (run / "student-lora" / "comfyui_workflow.json").is_file()

    subprocess.run([sys.executable, "-c", STOCK, str(run / "student")], check=True, capture_output=True)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub.serving() as hub:
        monkeypatch.setattr(export, "HfApi", partial(HfApi, endpoint=hub.url))
        told("verify", str(run / "student"), "--push", "me/mine")
        assert hub.repositories == {"me/mine": True}
    pushed = {path for _, path in hub.files}
    assert {"README.md", "fastgen.json", "model_index.json"} <= pushed
    assert len([path for path in pushed if path.startswith("images/")]) == 2, "a picture for each prompt"
    assert any(path.endswith(".safetensors") for path in pushed)
    notes = json.loads(hub.files["me/mine", "fastgen.json"])
    assert notes["steps"] == [2]
    assert "Newcomer" not in "".join(hub.files["me/mine", "README.md"].decode())
