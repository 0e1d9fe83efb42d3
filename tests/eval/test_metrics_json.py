"""metrics.json: written and read by the same class, also as an earlier version wrote it; every field is described."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_report import report
from pydantic import ValidationError

from eval.measures.figure import Figure
from eval.metrics_json import FILE, Report
from fastgen.errors import UserError


def written(folder: Path, data: Any) -> Path:
    (folder / FILE).write_text(json.dumps(data))
    return folder


def test_what_was_read_is_written_again_and_only_named_absences_are_added(tmp_path: Path) -> None:
    """The made-up file is of the first version of this format, which knew no flags, arguments of a call or training."""
    data = report(tmp_path)
    Report.read(written(tmp_path, data)).write(tmp_path)
    again = json.loads((tmp_path / FILE).read_text())
    for row in data["rows"]:
        row["flagged"] = []
        row["source"] |= {"arguments": None, "negative_prompt": None}
    data["training"] = None
    assert again == data
    assert Report.read(tmp_path).model_dump(mode="json") == data


def test_the_file_is_strict_ascii_json(tmp_path: Path) -> None:
    data = report(tmp_path)
    data["rows"][0]["title"] = "caf\u00e9 \u2028"
    Report.read(written(tmp_path, data)).write(tmp_path)
    assert (tmp_path / FILE).read_bytes().isascii()
    assert Report.read(tmp_path).rows[0].title == "caf\u00e9 \u2028"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_written_that_json_does_not_have(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Figure(value)
    first = Report.read(written(tmp_path, report(tmp_path)))
    told = replace(first.provenance, settings={"guidance": value})
    with pytest.raises(ValueError, match="JSON"):
        first.model_copy(update={"provenance": told}).write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{FILE} does not exist"):
        Report.read(tmp_path)


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The data with the value at a dotted path replaced."""
    *above, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    part = data
    for key in above:
        part = part[key]
    part[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 1, "format: Input should be 2, not 1"),
        ("format", 3, "format: Input should be 2, not 3"),
        ("rows.3.num", "5000", r"rows\.3\.num: .*integer.*, not '5000'"),
        ("rows.2.role", "judge", r"rows\.2\.role: .*'student', not 'judge'"),
        ("rows.2.metrics.fid.value", None, r"rows\.2\.metrics\.fid\.value: .*number, not None"),
        ("gallery.items.0", {"label": 3}, r"gallery\.items\.0\.seed: Field required"),
        ("provenance", {}, r"provenance\.reference: Field required"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_by_its_place(tmp_path: Path, path: str, value: Any, said: str) -> None:
    data = changed(report(tmp_path), path, value)
    with pytest.raises(UserError, match=said):
        Report.read(written(tmp_path, data))


@pytest.mark.parametrize("text", ["", "no JSON", "[1, 2]", '{"format": 2'])
def test_what_is_no_json_object_is_refused_in_one_paragraph(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is no report of format 2: the file") as refused:
        Report.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_every_class_and_every_field_says_what_it_is() -> None:
    schema = Report.model_json_schema()
    parts = {"Report": schema, **schema["$defs"]}
    assert len(parts) > 20
    mute = [
        f"{name}.{field}"
        for name, part in parts.items()
        for field, said in part["properties"].items()
        if not said.get("description")
    ]
    assert not mute
    assert all(len(part["description"]) > 10 for part in parts.values())
