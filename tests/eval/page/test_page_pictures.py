"""Pictures and plots of a page: all have words, none is loaded, the nearest and the best are marked."""

from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from dom import of_class, section, words
from made_up_report import HOSTILE, picture
from shown_report import Data, shown

from eval.page.pictures import LARGEST
from fastgen.errors import UserError


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


def test_a_path_that_is_no_text_is_refused_and_one_that_no_file_can_have_is_unreadable(folder: Path, data: Data):
    data["gallery"]["images"]["student-4"][0] = "a" * 5000
    assert "picture is unreadable" in words(shown(folder, data))
    data["gallery"]["images"]["student-4"][0] = "\0"
    with pytest.raises(UserError, match="the path of a picture in the report holds a control character"):
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
