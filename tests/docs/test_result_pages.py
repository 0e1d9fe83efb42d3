"""Pages of results are made of records: their digits, what is not known, what failed, and the curves."""

import json
from xml.etree import ElementTree

import pytest
import results_pages
from results_curves import drawn

from benchmarks.trials.record import Record
from fastgen.config.shipped import shipped

RECORDS = sorted(results_pages.RUNS.rglob("*.json"))
BARE = {"name": "dmd2", "config": "cifar10/compare/dmd2", "commit": None, "seed": None, "card": None, "at_once": None}
CURVE = [{"seconds": 0, "images": 0, "fid": 88.1}, {"seconds": 60.5, "images": 512, "fid": 2.25}]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of records in place of the real one: writes a record, whose numbers are as they are given."""
    monkeypatch.setattr(results_pages, "RUNS", tmp_path)

    def write(name: str, rows: str = "[]", **more: object) -> None:
        (tmp_path / "mine").mkdir(exist_ok=True)
        head = json.dumps(BARE | {"name": name, **more})[:-1]
        (tmp_path / "mine" / f"{name}.json").write_text(f'{head}, "rows": {rows}}}')

    return write


def cells(name: str) -> list[dict[str, str]]:
    head, _, *rows = results_pages.table(name).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    return [dict(zip(columns, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]


def test_a_row_has_the_digits_of_its_record_and_a_dash_for_what_it_does_not_say(runs):
    runs("one", '[{"steps": 4, "nfe": 4, "figures": {"fid": 1.00, "recall": 34}}]', at_once=3, card="H100", seed=0)
    runs("two", '[{"steps": 1, "figures": {"fid": 0.5}}]', updates={"kd": 1500, "dmd2": 3})
    near, far = cells("mine")
    assert (near["run"], near["Frechet"], near["recall"], near["NFE"]) == ("`two`", "0.5", "-", "-")
    assert (far["Frechet"], far["recall"], far["card"], far["seed"]) == ("1.00", "34", "H100, 3 runs at once", "0")
    assert (near["updates"], far["updates"], near["commit"]) == ("1,500 kd + 3 dmd2", "-", "-")
    assert "accuracy" not in near


def test_a_run_that_failed_says_how_and_stands_last(runs):
    runs("broken", failed="the loss | is not finite")
    runs("whole", '[{"steps": 1, "figures": {"fid": 90.0, "accuracy": 0.1}}]')
    assert [row["run"] for row in cells("mine")] == ["`whole`", "`broken`"]
    assert cells("mine")[1]["Frechet"] == "left no student: the loss / is not finite"


def test_a_block_of_a_page_is_filled_and_what_stands_around_it_is_left(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(results_pages, "RESULTS", tmp_path)
    runs("one", '[{"steps": 1, "figures": {"fid": 1.5}}]', curve=CURVE)
    blocks = [f"<!-- {block} -->\nold\n<!-- end -->\n" for block in ("table: mine", "curves: mine", "table: none")]
    (tmp_path / "a.md").write_text("".join(["before\n", *blocks]))
    made = results_pages.results()
    assert set(made) == {tmp_path / "a.md", tmp_path / "mine.svg"}
    text = made[tmp_path / "a.md"]
    assert text.startswith("before\n<!-- table: mine -->\n\n| run | steps |")
    assert "old" not in text
    assert "(mine.svg)" in text
    assert "No run of this table" in text
    (tmp_path / "a.md").write_text(text)
    assert results_pages.results()[tmp_path / "a.md"] == text


def test_curves_have_a_panel_for_each_run_that_was_measured_on_its_way():
    found = [Record.model_validate(BARE | {"name": name, "curve": CURVE}) for name in ("a", "<b>")]
    picture = ElementTree.fromstring(drawn([*found, Record.model_validate(BARE)]))
    said = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "<b>"} <= set(said)
    assert said.count("2.25 after 60.5 s") == 2


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_record_that_is_shown_says_where_it_is_from(file):
    record = Record.read(file)
    assert record.commit
    assert record.card
    assert record.config in shipped() or record.role == "teacher"
    assert record.rows or record.failed
