"""The page of a made-up report: what it says, that nothing of a report becomes code, and that all of it is shown."""

import json
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from dom import having, of_class, parse, section, shape, table, words
from made_up_report import EXTRACTOR, HOSTILE, SEEDS, picture, report

from eval.metrics_json import FILE, Report
from eval.page import html
from eval.page.pictures import LARGEST, Pictures
from fastgen.errors import UserError

Data = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of which nothing is missing."""
    folder = tmp_path_factory.mktemp("report")
    (folder / FILE).write_text(json.dumps(report(folder), allow_nan=False))
    html.write(folder)
    return folder


@pytest.fixture
def data(folder: Path) -> Data:
    """What its metrics.json says, to be changed."""
    return json.loads((folder / FILE).read_text())


def shown(folder: Path, data: Data) -> Element:
    """The page of other data beside the same pictures."""
    return parse(html.page(Report.model_validate_json(json.dumps(data), strict=True), Pictures(folder)))


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def root(text: str) -> Element:
    return parse(text)


def busy(data: Data) -> Data:
    """The report with all that it may hold: blocks of seeds, skipped and flagged images, arguments of a call."""
    data["rows"][-1]["metrics"]["fid"] |= {"spread": 0.125, "values": [3.8, 3.9, 4.0]}
    data["rows"][-1] |= {
        "skipped": [{"name": f"bad-{i}.png", "reason": "truncated"} for i in range(21)],
        "flagged": [{"image": 1, "flags": ["nsfw_content_detected"]}],
    }
    data["rows"][-1]["source"] |= {"arguments": {"height": 640}, "negative_prompt": "owl"}
    data["provenance"]["labels"] = {"path": "labels.txt", "sha256": "cd" * 32, "count": 11}
    data["protocol"] |= {"clip": "CLIP of a kind", "precision": "tf32"}
    return data


# --- safe to open


def test_ids_are_given_once(root: Element):
    ids = having(root, "id")
    assert ids
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_elsewhere(root: Element, text: str):
    sources = [source for key in ("src", "href", "srcset", "action") for source in having(root, key)]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_allows_our_script_alone(root: Element):
    (policy,) = (meta.get("content", "") for meta in root.findall(".//meta[@http-equiv]"))
    (script,) = root.iter("script")
    digest = b64encode(sha256((script.text or "").encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert not [key for one in root.iter() for key in one.attrib if key.startswith("on") or key == "style"]


LITERAL = {"role", "kind", "better", "id", "row", "image"}


def hostile(value: Any, key: str = "") -> Any:
    """The same report with a hostile end to every text in it, names of figures and of settings included."""
    if isinstance(value, str) and key not in LITERAL:
        return value and f"{value} {HOSTILE}"
    if isinstance(value, dict) and key not in ("images", "neighbours"):
        free = key in ("figures", "metrics", "not_measured", "details", "versions", "settings", "arguments")
        return {f"{name} {HOSTILE}" if free else name: hostile(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [hostile(one, key) for one in value]
    return value


def test_no_text_of_a_report_becomes_an_element_or_an_attribute(folder: Path, data: Data):
    busy(data)
    plain, attacked = shown(folder, data), shown(folder, hostile(data))
    assert list(shape(attacked)) == list(shape(plain))
    assert words(attacked).count(HOSTILE) > 100


# --- all of it is shown


def numbers(value: Any, path: tuple[str | int, ...] = ()) -> dict[str, tuple[str | int, ...]]:
    """The first place of every kind of number in a report: its path with * for places in lists and free names."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        named = {"metrics": 1, "details": 1, "images": 1, "neighbours": 1, "settings": 1, "arguments": 1}
        kind, free = [], 0
        for key in path:
            kind.append("*" if isinstance(key, int) or free else str(key))
            free = named.get(str(key), 0) if not free else free - 1
        return {".".join(kind): path}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, tuple[str | int, ...]] = {}
    for key, one in entries:
        found = numbers(one, (*path, key)) | found
    return found


UNSEEN = {
    "format": "tells readers how to read",
    "protocol.min_images": "speaks in a warning, where a row has fewer",
    "rows.*.spectrum.side": "the curves end where it says",
    "rows.*.spectrum.radial.*.cycles": "they are counted from 1",
    "rows.*.costs.nfe": "the row says it too",
    "rows.*.source.first_seed": "seen where rows differ in it, and under provenance",
    "gallery.items.*.label": "seen where there is no prompt",
    "gallery.strip.label": "seen where there is no prompt",
}


def test_every_number_of_a_report_is_on_its_page(folder: Path, data: Data):
    """Of every kind of number one is changed, and the page must change with it."""
    busy(data)
    data["rows"] = [row for row in data["rows"] if row["steps"] in (None, 50, 4)]
    data["gallery"]["neighbours"] = {"student-4": data["gallery"]["neighbours"]["student-4"]}
    kinds = numbers(data)
    assert len(kinds) > 40
    before = list(told(shown(folder, data)))
    blind = []
    for kind, path in kinds.items():
        if kind not in UNSEEN:
            again = json.loads(json.dumps(data))
            *above, last = path
            part = again
            for key in above:
                part = part[key]
            part[last] = part[last] + 1 if isinstance(part[last], int) else 1.5 * part[last] + 0.25
            if list(told(shown(folder, again))) == before:
                blind.append(kind)
    assert not blind


def told(root: Element) -> list[tuple[str, ...]]:
    """What a reader can see of a page: text, tooltips, words for pictures, shapes."""
    seen = ("title", "alt", "aria-label", "points", "cx", "cy", "x", "y", "d", "data-value")
    return [(str(one.tag), one.text or "", one.tail or "", *(one.get(key, "") for key in seen)) for one in root.iter()]


def test_the_headline_table_has_every_figure_of_every_row(root: Element, data: Data):
    head, *lines = table(section(root, "table"))
    assert head == ["", "N", "NFE", "s/image", "images/s", "FID \u2193", "recall \u2191", "nyquist (dB) \u2192 0"]
    assert len(lines) == len(data["rows"])
    for line, row in zip(lines, data["rows"], strict=True):
        fid = row["metrics"].get("fid")
        assert line[:2] == [row["title"], f"{row['num']:,}"]
        assert line[2] == ("\u2013" if row["nfe"] is None else f"{row['nfe']:g}")
        assert line[5] == (f"{fid['value']:.4g} {fid['low']:.3g} to {fid['high']:.3g}" if fid else "\u2013")
    assert EXTRACTOR in words(section(root, "table"))


def test_a_missing_figure_names_its_reason(root: Element):
    missing = of_class(section(root, "table"), "td", "missing")
    assert [words(one) for one in missing] == 7 * ["n/ma"]
    reason = "not measured: features are not stored in a statistics file"
    assert {one.get("title") for one in missing} == {reason}
    assert f"a {reason}" in words(section(root, "table"))


def test_several_blocks_of_seeds_show_their_spread_and_every_value(folder: Path, data: Data):
    data["rows"][-1]["metrics"]["fid"] |= {"spread": 0.125, "values": [3.8, 3.9, 4.0]}
    page = shown(folder, data)
    assert table(section(page, "table"))[-1][5] == "3.9 sd 0.12: 3.8, 3.9, 4"
    assert "sd 0.12: 3.8, 3.9, 4" in words(of_class(page, "div", "tile", "student")[-1])
    assert "student, 4 steps: 3.9 [3.775, 4.025] at 8" in words(section(page, "quality"))


def test_the_table_by_class_has_every_class_and_a_dash_for_what_was_not_measured(root: Element):
    head, *lines = table(section(root, "classes"))
    assert head[:4] == ["class", *(f"teacher, 50 steps: {what}" for what in ("N", "accuracy", "diversity"))]
    assert [line[:4] for line in lines] == [
        ["0 cat", "500", "0.9", "\u2013"],
        ["1 dog", "500", "0.7", "\u2013"],
        ["2 emu", "500", "0.5", "\u2013"],
    ]


def test_a_verdict_says_what_it_found(root: Element, folder: Path, data: Data):
    assert words(of_class(root, "ul", "verdicts")[0]) == "holds fid[4] < 5 (student-4: 3.9)"
    data["assertions"] = [
        {"text": "kid < 1", "holds": False, "measured": [{"row": "student-4", "value": None}]},
        {"text": "fid[9] < 1", "holds": False, "measured": []},
    ]
    failed = [words(one) for one in of_class(shown(folder, data), "ul", "verdicts")[0]]
    assert failed == ["FAILS kid < 1 (student-4: not measured)", "FAILS fid[9] < 1 (no such student row)"]


def test_where_the_figures_come_from_is_told(root: Element):
    told = section(root, "provenance")
    names, values = ([words(one) for one in told.iter(kind)] for kind in ("dt", "dd"))
    pairs = dict(zip(names, values, strict=True))
    assert pairs["reference"] == "data/real (images, N = 5,000, 0 skipped)"
    assert pairs["prompts"] == f"prompts.txt (3 lines, sha256 {'ab' * 32})"
    assert (pairs["seeds"], pairs["labels"], pairs["torch"], pairs["steps"]) == (
        "7 to 5006",
        "no file",
        "2.15.0",
        "1, 2, 4",
    )
    assert HOSTILE in words(of_class(told, "pre")[0])


# --- warnings


def warned(page: Element) -> str:
    return " ".join(words(one) for one in of_class(page, "aside", "warnings"))


CHANGES: list[tuple[str, Callable[[Data], Any]]] = [
    ("N = 900 is below 1,000", lambda data: data["rows"][-1].update(num=900)),
    ("Generated rows differ in N", lambda data: data["rows"][-1].update(num=5001)),
    ("Rows start at different seeds", lambda data: data["rows"][-1]["source"].update(first_seed=8)),
    ("does not name its extractor", lambda data: data["protocol"].update(reference_extractor=None)),
    ("was measured by another extractor: E2", lambda data: data["protocol"].update(reference_extractor="E2")),
    ("computed in tf32", lambda data: data["protocol"].update(precision="tf32")),
    (
        "student, 4 steps: images left out: 1",
        lambda data: data["rows"][-1].update(skipped=[{"name": "bad.png", "reason": "truncated"}]),
    ),
    (
        "blackened 1 images (nsfw); they count in the figures",
        lambda data: data["rows"][-1].update(flagged=[{"image": 0, "flags": ["nsfw"]}]),
    ),
]


@pytest.mark.parametrize(("said", "change"), CHANGES)
def test_reasons_to_distrust_a_figure_are_warnings(folder: Path, data: Data, said: str, change: Callable[[Data], Any]):
    assert warned(shown(folder, data)) == ""
    change(data)
    assert said in warned(shown(folder, data))


def test_skipped_images_are_named_up_to_twenty(folder: Path, data: Data):
    told = words(section(shown(folder, busy(data)), "provenance"))
    assert "student, 4 steps, images left out: 21" in told
    assert "bad-19.png: truncated" in told
    assert "bad-20.png" not in told
    assert "and more, named in metrics.json" in told


# --- sides


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
    assert {"table", "provenance"} <= names <= {"table", "provenance", "classes", "spectrum"}


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


# --- pictures


def test_every_picture_has_words(root: Element):
    assert all(image.get("alt") for image in root.iter("img"))
    assert all(plot.get("aria-label") for plot in root.iter("svg"))
    assert any(HOSTILE in image.get("alt", "") for image in root.iter("img"))


def test_small_pictures_are_embedded_as_they_are_and_large_ones_reduced(root: Element, folder: Path, data: Data):
    small = next(root.iter("img"))
    assert small.get("src", "").startswith("data:image/png")
    assert small.get("class") == "coarse"
    data["gallery"]["images"]["teacher-50"][0] = picture(folder, "images/large.png", 0, size=LARGEST + 4)
    large = next(shown(folder, data).iter("img"))
    assert large.get("src", "").startswith("data:image/jpeg")
    assert (large.get("width"), large.get("class")) == (str(LARGEST), None)


def test_a_missing_picture_is_said_to_be_missing(folder: Path, data: Data):
    (folder / "images/broken.png").write_bytes(b"no picture")
    data["gallery"]["images"]["student-4"][:3] = ["images/gone.png", "images/broken.png", None]
    (grid,) = (
        one for one in of_class(shown(folder, data), "figure", "grid", "student") if one.get("data-steps") == "4"
    )
    first, second, third, fourth, *_ = (words(cell) for cell in grid.iter("li"))
    assert first.startswith(f"student, 4 steps, seed 7, \u201c{HOSTILE}\u201d: picture is missing")
    assert ": picture is unreadable" in second
    assert third.startswith("could not be used")
    assert fourth == f"\u201c{HOSTILE}\u201d"


def test_a_picture_outside_the_folder_is_refused(folder: Path, data: Data):
    data["gallery"]["images"]["student-4"][0] = "../secret.png"
    with pytest.raises(UserError, match="outside the report folder"):
        shown(folder, data)


def test_the_nearest_real_images_stand_beside_their_sample(root: Element):
    near = section(root, "neighbours")
    (card, *_) = of_class(near, "ol", "card")
    assert [words(one) for one in card] == ["sample", "1.5", "2.5", "3.5"]
    assert "student, 4 steps: 1.5" in [words(one) for one in near.iter("li")]


# --- plots


def test_rings_mark_the_rows_that_none_beats(root: Element):
    (panel,) = root.findall(".//div[@data-figure='fid']")
    plots = list(panel.iter("svg"))
    assert len(plots) == 2
    for plot in plots:
        ringed = [words(mark[0]).partition(":")[0] for mark in plot.iter("g") if of_class(mark, "circle", "front")]
        assert ringed == ["teacher, 50 steps", "student, 1 steps", "student, 2 steps", "student, 4 steps"]


def test_cheaper_stands_to_the_left_and_better_below(root: Element):
    (panel,) = root.findall(".//div[@data-figure='fid']")
    for plot in panel.iter("svg"):
        marks = [of_class(mark, "rect", "dot")[0] for mark in of_class(plot, "g", "student")]
        across, down = ([float(mark.get(axis, "nan")) for mark in marks] for axis in ("x", "y"))
        assert across == sorted(across)
        assert down == sorted(down)  # SVG counts downwards: the distance falls with more steps
        assert len(set(across)) == len(set(down)) == 3


def test_a_peak_is_marked_on_the_curve_that_has_it(root: Element):
    curves = section(root, "spectrum").findall(".//g")
    peaked = {words(curve[0]) for curve in curves if of_class(curve, "path", "peak")}
    assert peaked == {"student, 1 steps: peak of 12.0 dB at 16 cycles", "student, 2 steps: peak of 5.0 dB at 16 cycles"}
