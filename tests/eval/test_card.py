"""`fastgen card`: figures, pictures and settings in the model card of an export, as the hub reads them."""

import json
from pathlib import Path

import made_up_report
import pytest
import yaml
from huggingface_hub import ModelCard

from fastgen.cli import main

CARD = "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\nlicense: mit\n---\n\n# Student\n\nwhat it is\n"
CONFIG = {
    "out": "/home/somebody/run",
    "teacher": {"path": "/home/somebody/model"},
    "student": {"steps": [4]},
    "sharing": "lora",
    "stages": [{"name": "dmd2", "objective": {"name": "dmd2", "guidance": 3.0}}],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a student, a report, and samples of which one was flagged."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report/metrics.json").write_text(json.dumps(made_up_report.report(tmp_path / "report")))
    (tmp_path / "student").mkdir()
    (tmp_path / "student/README.md").write_text(CARD)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    images = []
    for i, prompt in enumerate(["a red | fox", made_up_report.HOSTILE, "black"]):
        made_up_report.picture(tmp_path, f"samples/{i}.png", seed=i)
        flags = ["nsfw_content_detected"] if i == 2 else []
        images.append({"file": f"{i}.png", "seed": i, "label": None, "prompt": prompt, "steps": 4, "flags": flags})
    (tmp_path / "samples/samples.json").write_text(json.dumps({"images": images}))
    return tmp_path


def carded(run: Path) -> ModelCard:
    assert main(["card", str(run / "student"), "--samples", str(run / "samples")]) == 0
    return ModelCard.load(run / "student/README.md")


def test_a_card_has_the_figures_of_its_report_as_a_table_and_as_results(run):
    card = carded(run)
    text = card.text
    assert "what it is" in text
    assert "| student, 4 steps | 8 | 5000 |" in text
    assert "FID ↓" in text
    assert "| 0.04 | 100 | 10 |" in text, "its latency and the batch that it was measured at"
    assert (card.data.license, card.data.model_name) == ("mit", "student")
    found = {(r.metric_type, r.metric_name): r.metric_value for r in card.data.eval_results}
    report = json.loads((run / "report/metrics.json").read_text())
    rows = [row for row in report["rows"] if row["role"] == "student" and row["metrics"]]
    assert found == {
        (name, f"{report['figures'][name]['label']}, {row['title']}"): figure["value"]
        for row in rows
        for name, figure in row["metrics"].items()
    }


def test_pictures_are_the_hub_s_widget_and_are_there_but_for_what_was_blackened(run):
    card = carded(run)
    widget = card.data.to_dict()["widget"]
    assert [one["text"] for one in widget] == ["a red | fox", made_up_report.HOSTILE]
    assert all((run / "student" / one["output"]["url"]).is_file() for one in widget)
    assert "![](images/2.png)" not in card.text
    assert "a red \\| fox" in card.text
    assert "<script" not in card.text.replace("\\<", ""), "a backslash before it makes it text"


def test_settings_are_told_and_no_path_of_this_machine(run):
    text = carded(run).text
    assert "guidance: 3.0" in text
    assert "somebody" not in (run / "student/README.md").read_text()


def test_a_card_completed_twice_is_the_same(run):
    carded(run)
    first = (run / "student/README.md").read_text()
    carded(run)
    assert (run / "student/README.md").read_text() == first


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere has no README.md: give the folder that a run exported"),
        (["student", "--samples", "student"], "student has no samples.json"),
        (["student", "--report", "student"], "metrics.json does not exist"),
    ],
)
def test_what_is_not_there_is_said(run, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(run)
    assert main(["card", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert (run / "student/README.md").read_text() == CARD


def test_an_export_that_cannot_be_written_in_is_said(run, monkeypatch, capsys):
    monkeypatch.setattr("fastgen.disk.os.access", lambda *_: False)
    assert main(["card", str(run / "student")]) == 2
    assert f"the export is {run / 'student'}, but nothing can be written in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("hello", "does not begin as a model card"),
        ("---\na: [\n---\n", "holds no valid YAML"),
        ("---\n- a\n---\n", "holds no mapping of settings"),
        ("\udcff", "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_no_card_is_left(run, capsys, card, complaint):
    written = card.encode("utf-8", "surrogateescape")
    (run / "student/README.md").write_bytes(written)
    assert main(["card", str(run / "student")]) == 2
    assert complaint in capsys.readouterr().err
    assert (run / "student/README.md").read_bytes() == written


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("{", "cannot be read (the file: Invalid JSON"),
        ("{}", "cannot be read (images: Field required)"),
        ('{"images": [{"file": "0.png", "seed": "x"}]}', "cannot be read (images.0.seed: "),
        (
            '{"images": [{"file": "0.png", "seed": 0}, {"file": "gone.png", "seed": 1}]}',
            "gone.png, which is not",
        ),
    ],
)
def test_samples_that_are_damaged_are_refused_and_nothing_is_copied(run, capsys, record, complaint):
    (run / "samples/samples.json").write_text(record)
    assert main(["card", str(run / "student"), "--samples", str(run / "samples")]) == 2
    assert complaint in capsys.readouterr().err
    assert [file.name for file in (run / "student").iterdir()] == ["README.md"]


@pytest.mark.parametrize("settings", ["x: [\n", "- 1\n"])
def test_settings_that_are_damaged_are_refused(run, capsys, settings):
    (run / "config.yaml").write_text(settings)
    assert main(["card", str(run / "student"), "--samples", str(run / "samples")]) == 2
    assert "config.yaml holds no" in capsys.readouterr().err
    assert (run / "student/README.md").read_text() == CARD
