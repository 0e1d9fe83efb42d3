"""The HTML report of a made-up evaluation: what it says, that it is safe to open, and that its controls work."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_report import EXTRACTOR, HOSTILE, SEEDS, report

from eval.page import html
from eval.page.axes import Scale
from eval.page.markup import Markup, tag
from eval.page.pictures import LARGEST
from eval.page.spectrum import peaks
from fastgen.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def written(folder: Path, data: dict[str, Any]) -> str:
    (folder / "metrics.json").write_text(json.dumps(data, allow_nan=False))
    return html.write(folder).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Elements with attributes, words by element, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "img", "input", "br"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, words):
        self.words.append(words)

    def all(self, name: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for n, a in self.elements if n == name and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    written(folder, report(folder))
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    return Reader(text)


def test_children_and_attributes_are_escaped_unless_they_are_markup():
    assert tag("p", "a<b", Markup("<br>"), title='"') == '<p title="&quot;">a&lt;b<br></p>'
    assert tag("p", f"{tag('b', 'x')}!") == "<p>&lt;b&gt;x&lt;/b&gt;!</p>"


def test_every_element_is_closed(read: Reader):
    assert read.open == []
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_elsewhere(read: Reader, text: str):
    sources = [a[key] for _, a in read.elements for key in ("src", "href", "srcset", "action") if a.get(key)]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_text_stays_text(read: Reader, text: str):
    assert len(read.all("script")) == 1
    assert "<script>alert" not in text
    assert any(HOSTILE in words for words in read.words)
    assert any(HOSTILE in (image["alt"] or "") for image in read.all("img"))


def test_the_slider_stops_at_the_students_step_counts(read: Reader):
    assert [option["label"] for option in read.all("option") if "label" in option] == ["1", "2", "4"]
    ruler = read.all("input", type="range")[0]
    assert (ruler["min"], ruler["max"], ruler["step"]) == ("0", "2", "1")
    assert {a["data-steps"] for _, a in read.elements if a.get("data-steps")} == {"1", "2", "4"}


def test_every_row_is_in_the_table(text: str):
    table = Reader(text[text.index('id="table"') - 9 : text.index('id="quality"') - 9])
    words = " ".join(table.words)
    for one in ("real", "held-out", "teacher, 50 steps", "student, 1 steps", "3.51 to 4.29", "5,000", EXTRACTOR):
        assert one in words
    assert len(table.all("tr")) == 1 + 9


def test_a_missing_figure_names_its_reason(text: str):
    assert "not measured: features are not stored in a statistics file" in text
    assert text.count("n/m<sup>a</sup>") == 7


def test_pictures_stand_under_the_step_count_that_drew_them(text: str):
    for steps in ("1", "2", "4"):
        for kind, role in (("few", "teacher"), ("student", "student")):
            start = text.index(f'<figure class="grid {kind}" data-steps="{steps}">')
            alts = [image["alt"] for image in Reader(text[start : text.index("</figure>", start) + 9]).all("img")]
            titles = [f"{role}, {steps} steps, seed {seed}" for seed in SEEDS]
            assert [alt.partition(", \u201c")[0] for alt in alts] == titles


def test_every_picture_has_words(read: Reader):
    assert all(image["alt"] for image in read.all("img"))
    assert all(plot["aria-label"] for plot in read.all("svg"))


def test_small_pictures_are_embedded_as_they_are_and_large_ones_reduced(tmp_path: Path):
    small = Reader(written(tmp_path, report(tmp_path))).all("img")[0]
    assert small["src"].startswith("data:image/png")
    large = Reader(written(tmp_path, report(tmp_path, size=LARGEST + 4))).all("img")[0]
    assert large["src"].startswith("data:image/jpeg")
    assert large["width"] == str(LARGEST)


def test_a_missing_picture_is_said_to_be_missing(tmp_path: Path):
    data = report(tmp_path)
    (tmp_path / "images/student-4/7.png").unlink()
    (tmp_path / "images/student-4/8.png").write_bytes(b"no picture")
    text = written(tmp_path, data)
    assert (
        "seed 7, \u201c&lt;script&gt;alert(1)&lt;/script&gt; &quot;quoted&quot; &amp; sons\u201d: picture is missing"
        in text
    )
    assert ": picture is unreadable" in text


def test_a_picture_outside_the_folder_is_refused(tmp_path: Path):
    data = report(tmp_path)
    data["gallery"]["images"]["student-4"][0] = "../secret.png"
    with pytest.raises(UserError, match="outside the report folder"):
        written(tmp_path, data)


def test_another_format_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        html.write(tmp_path)
    with pytest.raises(UserError, match="format: Input should be 2, not 1"):
        written(tmp_path, {"format": 1})


def test_warnings_name_small_n_unequal_n_and_skipped_images(tmp_path: Path):
    data = report(tmp_path)
    assert 'class="warnings"' not in written(tmp_path, data)
    data["rows"][-1] |= {"num": 900, "skipped": [{"name": "bad<1>.png", "reason": "truncated"}]}
    text = written(tmp_path, data)
    assert "N = 900 is below 1,000" in text
    assert "Generated rows differ in N" in text
    assert "student, 4 steps: images left out: 1" in text
    assert "bad&lt;1&gt;.png: truncated" in text


@pytest.mark.parametrize("roles", [("real", "student"), ("real", "teacher"), ("real",)])
def test_a_report_without_some_sides_still_stands(tmp_path: Path, roles: tuple[str, ...]):
    data = report(tmp_path)
    data["rows"] = [one for one in data["rows"] if one["role"] in roles]
    assert Reader(written(tmp_path, data)).open == []
    assert Reader(written(tmp_path, {**data, "gallery": None, "figures": {}, "assertions": []})).open == []


def test_a_student_that_is_files_needs_no_slider(tmp_path: Path):
    data = report(tmp_path)
    student = {**data["rows"][-1], "id": "student-4", "steps": None, "nfe": None, "costs": None}
    student["source"] = {**student["source"], "kind": "images", "first_seed": None}
    data["rows"] = [*data["rows"][:3], student]
    text = written(tmp_path, data)
    assert 'type="range"' not in text
    assert "first images of its files, not of these seeds" in text
    assert "what drawing it cost is not known" in text


def test_a_teacher_that_was_not_drawn_at_the_students_steps_is_said_to_be_missing(tmp_path: Path):
    data = report(tmp_path)
    many, one, _, four = (one for one in data["rows"] if one["role"] == "teacher")
    students = [one for one in data["rows"] if one["role"] == "student"]
    said = "teacher, steps: 2<small>was not measured</small>"
    assert said in written(tmp_path, {**data, "rows": [many, one, four, *students]})
    assert "<small>was not measured" not in written(tmp_path, {**data, "rows": [four, students[-1]]})
    assert "<small>was not measured" not in written(tmp_path, {**data, "rows": students})


def test_several_blocks_of_seeds_show_their_spread_and_every_value(tmp_path: Path):
    data = report(tmp_path)
    data["rows"][-1]["metrics"]["fid"] |= {"spread": 0.125, "values": [3.8, 3.9, 4.0]}
    text = written(tmp_path, data)
    assert text.count("<small>sd\u00a00.12: 3.8, 3.9, 4</small>") == 2
    assert "student, 4 steps: 3.9 [3.775, 4.025] at 8" in text


def test_students_of_equal_steps_are_told_apart_by_their_titles(tmp_path: Path):
    data = report(tmp_path)
    data["rows"][-1] |= {"id": "later", "steps": 2, "title": "student after dmd2"}
    options = [option["label"] for option in Reader(written(tmp_path, data)).all("option") if "label" in option]
    assert options == ["1", "student, 2 steps", "after dmd2"]


def test_rings_mark_the_rows_that_none_beats(text: str):
    panel = text[text.index('data-figure="fid"') : text.index('data-figure="nyquist_peak"')]
    plots = panel.split("<figure")[1:]
    for one in plots:
        ringed = [mark for mark in one.split("<g ") if 'class="front"' in mark]
        titles = [re.search("<title>(.*?):", mark)[1] for mark in ringed]
        assert titles == ["teacher, 50 steps", "student, 1 steps", "student, 2 steps", "student, 4 steps"]


def test_a_peak_is_marked_where_it_is():
    falling = [-0.1 * i for i in range(23)]
    assert peaks(falling) == []
    [peak] = peaks([level + 12 * (i == 15) for i, level in enumerate(falling)])
    assert peak.cycles == 16
    assert peak.excess == pytest.approx(12, abs=0.3)
    assert peaks([9.0, *falling[1:]]) == []


def test_plots_place_more_to_the_right_and_higher():
    x, y = (Scale.over([1, 100], direction, log=True) for direction in ("x", "y"))
    assert x(1) < x(10) < x(100)
    assert x(10) == pytest.approx((x(1) + x(100)) / 2)
    assert y(100) < y(1)
    assert all(x.low <= tick <= x.high for tick in x.ticks())
    assert {1, 10, 100} <= set(x.ticks())
    assert not Scale.over([0, 1], "x", log=True).log


def browse(page: Path, fragment: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens the page without a window; --dump-dom prints it after its script has run."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *flags, profile, *options, f"{page.as_uri()}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("steps", ["1", "4"])
def test_the_slider_changes_the_grid_without_console_errors(folder: Path, steps: str):
    opened = browse(folder / "report.html", f"#steps={steps}", "--dump-dom")
    assert "CONSOLE" not in opened.stderr
    [output] = re.findall(r"<output[^>]*>(.*?)</output>", opened.stdout)
    assert output == steps
    parts = [a for _, a in Reader(opened.stdout).elements if a.get("data-steps")]
    assert {a["data-steps"] for a in parts if "off" not in (a.get("class") or "").split()} == {steps}


def test_controls_obey_the_keyboard_and_the_mouse(folder: Path):
    """A script added to a copy of the page moves the slider, sorts, chooses another figure and writes what it sees."""
    script = """
      const slider = document.getElementById("steps"), seen = [];
      slider.value = 1; slider.dispatchEvent(new Event("input")); seen.push(location.hash, slider.ariaValueText);
      const visible = [...document.querySelectorAll("[data-steps]")].filter((part) => part.getClientRects().length);
      seen.push([...new Set(visible.map((part) => part.dataset.steps))].join());
      const button = document.querySelectorAll(".sortable button")[2];
      const firsts = () => document.querySelector(".sortable tbody th").textContent;
      button.click(); seen.push(firsts()); button.click(); seen.push(firsts());
      const menu = document.querySelector("select");
      menu.value = "nyquist_peak"; menu.dispatchEvent(new Event("change"));
      seen.push([...document.querySelectorAll("[data-figure]")]
        .filter((panel) => panel.getClientRects().length).map((panel) => panel.dataset.figure).join());
      document.title = seen.join("|");
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (folder / "report.html").read_text())
    copy = folder / "driven.html"
    copy.write_text(text.replace("</body>", f"<script>{{{script}}}</script></body>"))
    opened = browse(copy, "", "--dump-dom")
    assert "CONSOLE" not in opened.stderr
    title = re.search("<title>(.*?)</title>", opened.stdout)
    assert title is not None
    assert title[1] == "#steps=2|2 steps|2|2 emu|0 cat|nyquist_peak"


def test_an_injected_script_does_not_run(folder: Path):
    copy = folder / "injected.html"
    text = (folder / "report.html").read_text()
    copy.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"))
    opened = browse(copy, "", "--dump-dom")
    assert "<title>owned" not in opened.stdout
    assert "Content Security Policy" in opened.stderr
