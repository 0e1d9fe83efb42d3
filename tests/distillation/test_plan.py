"""What a dry run says is to come: stages, updates, and the memory that networks take."""

import re
from pathlib import Path

import pytest
import tiny
import yaml
from config_texts import PLAIN

from fastgen.cli import main
from fastgen.config.yaml_file import dump, load
from fastgen.distillation.plan import plan

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
COUNTED = "digits/scm_1step.yaml"
"""Of the small networks, whose costs are counted as well: it differentiates in a way of its own."""


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_dry_run_of_a_shipped_config_tells_its_plan_and_writes_nothing(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if not str(file).endswith(COUNTED):  # minutes for networks of real size
        for module, name in (("costs", "costs"), ("foreseen", "foreseen")):
            monkeypatch.setattr(f"fastgen.distillation.{module}.{name}", lambda *_, **__: ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it is asked again and again
    code = main(["train", "--config", str(file), "--dry-run"])
    printed, told = capsys.readouterr()
    assert code == (2 if "the run would be refused here:" in told else 0)  # data and teachers may be elsewhere
    config = load(file)
    assert printed.startswith(dump(config))
    assert f"\nstage {len(config.stages) - 1}, " in printed
    assert re.search("updates: .*generator", printed)
    assert not list(tmp_path.iterdir())


def planned(folder: Path, *overrides: str) -> str:
    """The plan of a short config whose teacher is in this folder."""
    config = load(yaml.safe_load(PLAIN), [f"teacher.path={folder / 'teacher'}", *overrides])
    return plan(config, recipes=folder)


@pytest.mark.parametrize("build", [tiny.class_conditional, tiny.ddpm, tiny.stable_diffusion, tiny.dit])
def test_the_plan_counts_what_the_networks_hold(tmp_path, build):
    pipe = build()
    pipe.save_pretrained(tmp_path / "teacher")
    network = getattr(pipe, "transformer", None) or pipe.unet
    size = sum(p.numel() for p in network.parameters())
    text = planned(tmp_path, "train.ema=0.9", "train.batch=10")
    assert f"denoiser {size / 1e6:.2f} M parameters" in text
    mib = {line.split("  ")[1]: float(line.split()[-2]) for line in text.splitlines() if line.endswith("MiB")}
    expected = {  # fp32 weight, gradient and two moments; average; the real score is the teacher itself
        "teacher's pipeline": 4 * size,
        "generator (trained)": 16 * size,
        "fake_score (trained)": 16 * size,
        "generator average": 4 * size,
        "sum, without activations": 40 * size,
    }
    assert mib == {name: pytest.approx(count / 2**20, abs=0.051) for name, count in expected.items()}
    assert "updates: generator 10, fake_score 50" in text
    half = planned(tmp_path, "train.precision=bf16")
    frozen = next(line for line in half.splitlines() if "real_score" in line)
    assert float(frozen.split()[-2]) == pytest.approx(2 * size / 2**20, abs=0.051)
    told = ["train.precision=bf16", "train.masters=bf16", "train.gradients=bf16", "train.ema_device=cpu"]
    told += ["train.optim.name=adamw8bit", "train.optim.betas=[0.0,0.9]", "teacher.dtype=bf16"]
    lean = planned(tmp_path, *told)
    total = next(line for line in lean.splitlines() if "sum, without" in line)
    assert float(total.split()[-2]) == pytest.approx((2 + 2 * (2 + 2 + 1 + 4 / 256)) * size / 2**20, abs=0.2)


@pytest.mark.parametrize("build", [tiny.class_conditional, tiny.stable_diffusion])
def test_the_plan_counts_what_stays_as_a_stage_before_left_it_and_nothing_of_the_teacher_s(tmp_path, build):
    build().save_pretrained(tmp_path / "teacher")
    few = {"name": "few", "objective": {"name": "kd"}}

    def told(real_score: str | None = None, **settings: str) -> dict[str, str]:
        carry = {"coach": "few", "generator": "teacher"} | ({"real_score": real_score} if real_score else {})
        coached = {"objective": {"name": "k_dmd"}, "carry": carry}
        raw = {name: value for name, value in yaml.safe_load(PLAIN).items() if name != "objective"}
        raw |= {"teacher": {"path": str(tmp_path / "teacher")}, "stages": [few, coached], **settings}
        text = plan(load(raw), recipes=tmp_path)
        last = [line.split() for line in text[text.index("stage 1, k_dmd") :].splitlines() if line.endswith("MiB")]
        return {f"{role} {kind}": size for role, kind, *_, size, _ in last}

    whole = told()
    assert float(whole["generator (trained)"]) == pytest.approx(4 * float(whole["coach (frozen)"]), abs=0.21)
    assert told(real_score="teacher") == whole
    shared = told(sharing="lora")
    assert float(shared["generator (adapter)"]) == pytest.approx(4 * float(shared["coach (adapter)"]), abs=0.21)
    assert told(real_score="few", sharing="lora").keys() - shared.keys() == {"real_score (adapter)"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "not here, there is no such folder"),
        ("./no/where", "not here, there is no such folder"),
        ("owner/na.me", "not here, it would be downloaded"),
        ("a.safetensors", "in a single file"),
    ],
)
def test_the_plan_says_where_a_denoiser_is_that_it_cannot_count(path, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").touch()
    assert f"teacher: {path}, denoiser {words}\n" in planned(tmp_path, f"teacher.path={path}")


def test_the_plan_names_the_recipe_that_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs/digits/dmd2_1step.yaml"
    text = plan(load(file), recipes=file.parent)
    assert text.startswith("first, because runs/digits/teacher/pipeline does not exist yet")
    assert "  stage 0, pretrain: 32,000 images" in text
    assert "stage 1, dmd2: 3,200 images in batches of 32, fp32, reads images" in text
