"""The page of a run in a browser: nothing is refused by its own policy, it follows the run, its button stops it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from browsing import PATIENCE_S, browser
from made_up_run import write_run

from eval.watch.server import Watcher

pytestmark = pytest.mark.browser
HOLDER = """
import signal, sys
from pathlib import Path
from fastgen.lock import held
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with held({folder: folder / ".lock"}):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    with Watcher(write_run(tmp_path / "run"), 0) as watcher:
        Thread(target=watcher.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield watcher
        watcher.shutdown()


def until(page, condition: str) -> None:
    """Waits for an expression of the page's."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, PATIENCE_S).until(lambda _: page.execute_script(f"return {condition}"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)], ids=["wide light", "narrow dark"])
def test_it_fits_its_window_in_both_colours_without_an_error(watcher, tmp_path, width, dark):
    with browser(tmp_path, width=width, dark=dark) as page:
        page.get(watcher.address)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 22, 26)" if dark else "rgb(252, 252, 250)")
        broken = "[...document.images].filter((one) => one.offsetParent && !one.naturalWidth).length"
        assert page.execute_script(f"return {broken}") == 0
        assert [one for one in page.get_log("browser") if "favicon" not in one["message"]] == []


def test_it_follows_the_run_keeps_what_was_chosen_and_stops_it(watcher, tmp_path):
    started = subprocess.Popen([sys.executable, "-c", HOLDER, str(watcher.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "held\n"
        with browser(tmp_path) as page:
            page.get(watcher.address)
            assert page.execute_script("return document.querySelector('.state').textContent") == "running"
            page.execute_script(
                "const menu = document.querySelector('select'); menu.value = '0-kd-000000800';"
                "menu.dispatchEvent(new Event('change', {bubbles: true}))"
            )
            line = {"stage": 1, "cycle": 21, "images": 840, "generator/dm": 0.5, "note": "a later note"}
            with (watcher.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            until(page, "document.querySelector('.log').textContent.includes('a later note')")
            assert page.execute_script("return document.querySelector('select').value") == "0-kd-000000800"
            shown = "[...document.querySelectorAll('[data-moment]')].filter((one) => one.offsetParent)"
            assert page.execute_script(f"return {shown}.map((one) => one.dataset.moment)") == ["0-kd-000000800"]
            page.find_element("css selector", ".stop button").click()
            assert started.wait(timeout=PATIENCE_S) == 143
            until(page, "document.querySelector('.state').textContent === 'stopped'")
            assert not page.find_elements("css selector", ".stop")
    finally:
        started.kill()
        started.wait()
