"""The sides of a page: its slider stops where the student was drawn, and what is missing is said."""

from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from dom import having, of_class, section, table, words
from made_up_report import SEEDS
from shown_report import Data, shown

from eval.metrics_json import Item
from eval.page.words import asked


def test_the_slider_stops_at_the_students_step_counts(root: Element):
    assert [option.get("label") for option in root.findall(".//datalist/option")] == ["1", "2", "4"]
    (ruler,) = root.findall(".//input[@type='range']")
    assert (ruler.get("min"), ruler.get("max"), ruler.get("step")) == ("0", "2", "1")
    assert {*having(root, "data-steps")} == {"1", "2", "4"}


def test_pictures_stand_under_the_step_count_that_drew_them(root: Element):
    for steps in ("1", "2", "4"):
        for kind, role in (("few", "teacher"), ("student", "student")):
            (grid,) = (one for one in of_class(root, "figure", "grid", kind) if one.get("data-steps") == steps)
            alts = [image.get("alt", "") for image in grid.iter("img")]
            titles = [f"{role}, {steps} steps, seed {seed}" for seed in SEEDS]
            assert [alt.partition(", \u201c")[0] for alt in alts] == titles


def test_students_of_equal_steps_are_told_apart_by_their_titles(folder: Path, data: Data):
    data["rows"][-1] |= {"id": "later", "steps": 2, "title": "student after dmd2"}
    options = [option.get("label") for option in shown(folder, data).findall(".//datalist/option")]
    assert options == ["1", "student, 2 steps", "after dmd2"]


@pytest.mark.parametrize("roles", [("real", "student"), ("real", "teacher"), ("real",)])
def test_a_report_without_some_sides_still_stands(folder: Path, data: Data, roles: tuple[str, ...]):
    data["rows"] = [one for one in data["rows"] if one["role"] in roles]
    assert len(table(section(shown(folder, data), "table"))) == 1 + len(data["rows"])
    bare = shown(folder, {**data, "gallery": None, "figures": {}, "assertions": []})
    names = {one.get("id") for one in bare.iter("section")}
    assert {"table", "provenance"} <= names <= {"table", "provenance", "classes", "prompts", "latency", "spectrum"}


def test_a_student_that_is_files_needs_no_slider(folder: Path, data: Data):
    student = {**data["rows"][-1], "id": "student-4", "steps": None, "nfe": None, "costs": None}
    student["source"] = {**student["source"], "kind": "images", "first_seed": None}
    data["rows"] = [*data["rows"][:3], student]
    page = shown(folder, data)
    assert page.findall(".//input[@type='range']") == []
    (grid,) = of_class(page, "figure", "grid", "student")
    assert "first images of its files, not of these seeds" in words(grid)
    assert "student, 4 steps is not in a plot: what drawing it cost is not known" in words(section(page, "quality"))


def test_a_teacher_that_was_not_drawn_at_the_students_steps_is_said_to_be_missing(folder: Path, data: Data):
    many, one, _, four = (one for one in data["rows"] if one["role"] == "teacher")
    students = [one for one in data["rows"] if one["role"] == "student"]
    said = "teacher, steps: 2 was not measured"
    captions = [words(one) for one in shown(folder, {**data, "rows": [many, one, four, *students]}).iter("figcaption")]
    assert captions.count(said) == 2
    for rows in ([four, students[-1]], students):
        page = shown(folder, {**data, "rows": rows})
        assert not any("was not measured" in words(one) for one in page.iter("figcaption"))


def test_labels_of_a_teacher_and_a_student_at_one_place_do_not_overlap(folder: Path, data: Data):
    data["rows"] = [one for one in data["rows"] if one["steps"] in (None, 50, 4)]
    for row in data["rows"]:
        if row["steps"] == 4:
            row["metrics"]["fid"]["value"] = 5.0
    plot = of_class(section(shown(folder, data), "quality"), "figure", "plot", "nfe")[0]
    labels = [text for group in plot.iter("g") for text in group.iter("text") if text.text == "4"]
    first, second = ((float(text.get("x", "")), float(text.get("y", ""))) for text in labels)
    assert abs(first[0] - second[0]) > 12
    assert abs(first[1] - second[1]) > 12


@pytest.mark.parametrize(("prompt", "title"), [("a fox", "One prompt, many seeds"), (None, "One class, many seeds")])
def test_many_seeds_are_of_what_was_asked_for(folder: Path, data: Data, prompt: str | None, title: str):
    data["gallery"]["strip"] |= {"prompt": prompt}
    assert title in words(section(shown(folder, data), "diversity"))


@pytest.mark.parametrize(("name", "told"), [("dog", "class 1 dog"), ("1", "class 1"), (None, "class 1")])
def test_a_class_is_told_by_its_number_and_by_its_name_if_that_is_another(name: str | None, told: str):
    assert asked(Item(label=1, class_name=name, prompt=None, seed=7)) == told
