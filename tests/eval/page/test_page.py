"""The page of a made-up report: what it says, that nothing of a report becomes code, and that all of it is shown."""

import json
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from dom import having, of_class, section, shape, table, words
from made_up_report import EXTRACTOR, HOSTILE
from shown_report import Data, busy, shown

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


def test_prompts_stand_from_the_worst_to_the_best_of_the_student_and_those_between_are_counted(
    root: Element, folder: Path, data: Data
):
    head, *lines = table(section(root, "prompts"))
    titles = ["teacher, 50 steps", *(f"{who}, {n} steps" for n in (1, 2, 4) for who in ("teacher", "student"))]
    assert head == ["prompt", *titles]
    assert [line[0] for line in lines] == [HOSTILE, "a red bird in the snow, seen from below"]
    assert lines[0][1:] == ["18 of 2", *(f"17.5{n} of 2" for n in (1, 1, 2, 2, 4, 4))]
    scores = [{"prompt": f"prompt {i}", "num": 1, "clip_score": float(i)} for i in range(50)]
    data["rows"][-1]["per_prompt"] = scores
    data["rows"][2]["per_prompt"] = scores[:1]
    few = table(section(page := shown(folder, data), "prompts"))[1:]
    assert [line[0] for line in few] == [f"prompt {i}" for i in (*range(20), *range(30, 50))]
    assert [line[1] for line in few[:2]] == ["0", "\u2013"]
    assert "10 prompts between the lowest and the highest are left out" in words(section(page, "prompts"))


def test_seconds_by_batch_size_are_a_table_where_they_were_taken(root: Element, folder: Path, data: Data):
    head, *lines = table(section(root, "latency"))
    assert head == ["", "batch 1", "batch 4", "batch 16"]
    assert len(lines) == 7
    assert lines[0] == ["teacher, 50 steps", "1.5", "0.375", "0.09375"]
    assert lines[1] == ["teacher, 1 steps", "0.03", "0.0075", "no memory"]
    for row in data["rows"]:
        row["latency"], row["per_prompt"] = [], None
    assert not [one for one in shown(folder, data).iter() if one.get("id") in ("latency", "prompts")]


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
