"""Pictures on demand: as `fastgen sample` draws them, of a pipeline that is loaded once; and the page that asks."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from browsing import PATIENCE_S, browser

from fastgen.cli import main
from fastgen.errors import UserError
from fastgen.models.pipelines.opening import Opened
from fastgen.sampling.drawer import MOST_STEPS, Drawer, Wish, side_by_side
from fastgen.sampling.order import sample
from fastgen.sampling.pictures import picture


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classes") / "teacher"
    tiny.class_conditional().save_pretrained(folder)
    return str(folder)


def test_a_picture_is_the_one_that_sample_draws(classes):
    drawer = Drawer(Opened(classes), "cpu")
    timed = drawer.draw(Wish(steps=2, seed=7, label=3))
    drawn = sample(classes, num=1, seed=7, labels=[3], steps=2, device="cpu")
    assert timed.image.tobytes() == picture(drawn[0]).tobytes()
    assert timed.seconds > 0
    assert (drawer.kind, drawer.classes) == ("label", range(10))


def test_a_pipeline_is_loaded_once(classes, monkeypatch):
    loaded, load = [], Opened.load

    def counted(opened: Opened, *told: Any, **more: Any) -> Any:
        loaded.append(opened.path)
        return load(opened, *told, **more)

    monkeypatch.setattr(Opened, "load", counted)
    drawer = Drawer(Opened(classes), "cpu")
    for seed in (0, 1):
        drawer.draw(Wish(steps=1, seed=seed, label=0))
    assert loaded == [classes]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(steps=0, label=1), "0 steps were asked for: give 1 to 200"),
        (Wish(steps=MOST_STEPS + 1, label=1), "201 steps were asked for"),
        (Wish(steps=1, label=10), "class label 10 is out of range"),
        (Wish(steps=1, prompt="a fox"), "a prompt was given"),
    ],
    ids=["none", "too many", "class", "prompt"],
)
def test_a_wish_that_cannot_be_is_refused(classes, wish, words):
    with pytest.raises(UserError, match=words):
        Drawer(Opened(classes), "cpu").draw(wish)


def test_a_teacher_that_is_named_must_be_there(classes, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        side_by_side(classes, str(tmp_path / "nowhere"), base=None, device="cpu", dtype="float32")
    alone = side_by_side(classes, None, base=None, device="cpu", dtype="float32")
    both = side_by_side(classes, classes, base=None, device="cpu", dtype="float32")
    assert (len(alone), len(both), both[0].dtype) == (1, 2, torch.float32)


def test_without_gradio_its_extra_is_named(classes, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["demo", classes]) == 2
    assert "pip install 'fastgen[demo]'" in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_draws_teacher_beside_student_with_their_times(classes, tmp_path: Path):
    gradio = pytest.importorskip("gradio")
    from selenium.webdriver.support.ui import WebDriverWait

    from fastgen.cli.demo import build

    drawers = side_by_side(classes, classes, base=None, device="cpu", dtype="float32")
    page = build(gradio, drawers, teacher_steps=3, teacher_guidance=None)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        with browser(tmp_path) as shown:
            shown.get(address)
            wait = WebDriverWait(shown, PATIENCE_S)
            wait.until(lambda _: shown.find_elements("css selector", "button.primary"))
            shown.find_element("css selector", "button.primary").click()
            wait.until(lambda _: len(shown.find_elements("css selector", "img[src*='/file=']")) == 2)
            times = "return [...document.querySelectorAll('textarea')].map((one) => one.value)"
            student, teacher = [one for one in shown.execute_script(times) if " s" in one]
            assert "step" in student
            assert teacher.startswith("3 steps, ")
    finally:
        page.close()
