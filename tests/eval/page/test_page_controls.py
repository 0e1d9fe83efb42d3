"""The page in use: both themes can be read, and its controls work in a browser, where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dom import having, parse, words

from eval.page import html
from eval.page.axes import Scale
from eval.page.spectrum import peaks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STYLE = (Path(html.__file__).parent / "report.css").read_text(encoding="utf-8")
TEXT = ("ink", "faint", "many", "few", "student", "real", "good", "bad")


def themes() -> tuple[dict[str, str], dict[str, str]]:
    """The colours of the light and of the dark theme by name."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in blocks)
    return light, dark


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    shares = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_themes_have_every_colour_that_is_used():
    light, dark = themes()
    assert light.keys() == dark.keys()
    assert {*re.findall(r"var\(--(\w+)", STYLE)} == light.keys() | {"own"}


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_stands_out_from_its_ground(theme: dict[str, str]):
    """By 4.5 to 1 and more: WCAG 2.2, success criterion 1.4.3."""
    grounds = [("paper", name) for name in TEXT] + [("card", "ink"), ("card", "faint"), ("alarm", "ink")]
    for ground, name in grounds:
        dark, bright = sorted(luminance(theme[one]) for one in (ground, name))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {ground}"


def test_a_peak_is_where_levels_stick_out():
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


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0, 2.6e285], [1e308, -1e308], [5e-324, 1e308], [1e308], [5e-324], [0.0]])
def test_numbers_of_any_size_have_a_place_in_a_plot(values: list[float], log: bool):
    scale = Scale.over(values, "x", log=log)
    assert all(58 <= scale(value) <= 466 for value in values)
    assert len(scale.ticks()) >= 2


def browse(page: Path, fragment: str) -> subprocess.CompletedProcess[str]:
    """Opens the page without a window and prints it after its script has run."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *flags, profile, "--dump-dom", f"{page.as_uri()}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("steps", ["1", "4"])
def test_the_slider_changes_the_grid_without_console_errors(folder: Path, steps: str):
    opened = browse(folder / "report.html", f"#steps={steps}")
    assert "CONSOLE" not in opened.stderr
    root = parse(opened.stdout)
    assert [words(one) for one in root.iter("output")] == [steps]
    parts = [one for one in root.iter() if "data-steps" in one.attrib]
    assert {one.get("data-steps") for one in parts if "off" not in one.get("class", "").split()} == {steps}
    assert len({*having(root, "data-steps")}) == 3


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
    opened = browse(copy, "")
    assert "CONSOLE" not in opened.stderr
    title = re.search("<title>(.*?)</title>", opened.stdout)
    assert title is not None
    assert title[1] == "#steps=2|2 steps|2|2 emu|0 cat|nyquist_peak"


def test_an_injected_script_does_not_run(folder: Path):
    copy = folder / "injected.html"
    text = (folder / "report.html").read_text()
    copy.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"))
    opened = browse(copy, "")
    assert "<title>owned" not in opened.stdout
    assert "Content Security Policy" in opened.stderr
