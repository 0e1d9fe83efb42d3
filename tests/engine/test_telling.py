"""What a run says while it trains: its bar or lines, its two logs, its trackers."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastgen.engine import bar as bars
from fastgen.engine.bar import Bar, by_role
from fastgen.engine.log import PACE, RunLog
from fastgen.engine.pace import GIB, KNOWN_S, Pace, sized, spoken
from fastgen.engine.progress import Position
from fastgen.models.pipelines.repeats import said_once

FIGURES = {
    "fake_score/eps": 0.5,
    "fake_score/grad": 2.0,
    "generator/dm": 0.123456,
    "generator/grad": 1.5,
    "generator/lr": 1e-3,
    "quality/frechet": 3.0,
}


class Tracker:
    """Keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name, self.told, self.pictures = name, [], []

    def log_images(self, values, step, **settings) -> None:
        self.pictures.append((values, step, settings))


def accelerator(*trackers, main=True):
    told = []
    return SimpleNamespace(
        is_main_process=main,
        trackers=list(trackers),
        told=told,
        log=lambda values, step: told.append((step, values)),
        init_trackers=lambda *_, **__: None,
    )


def test_figures_are_named_by_their_role_the_generator_first():
    assert by_role(FIGURES) == ["generator dm 0.123 grad 1.5", "fake_score eps 0.5 grad 2"]


def lines(total: int, moves: range) -> list[str]:
    said: list[str] = []
    bar = Bar("stage 1/2 kd", share=0.0, say=said.append, hidden=False)
    for images in moves:
        bar.move(images, images / total)
        bar.tell(FIGURES, ["frechet 3 (best 2)"], {"memory/gib": 1.5, "pace/images_per_second": 12.34})
    bar.close()
    return said


def test_without_a_terminal_a_stage_is_a_dozen_lines_with_the_time_left(capsys, monkeypatch):
    seconds = iter(range(100))  # asked when the stage begins, then once a mark between its ends
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(seconds))
    said = lines(1000, range(0, 1001, 5))
    assert len(said) == 11
    assert [line.partition(";")[0] for line in (said[0], said[2], said[-1])] == [
        "stage 1/2 kd: 0%",
        "stage 1/2 kd: 20%, about 8 s left",
        "stage 1/2 kd: 100%",
    ]
    assert said[5] == (
        "stage 1/2 kd: 50%, about 5 s left; 500 images; 12.3 images/s; 1.50 GiB; frechet 3 (best 2); "
        "generator dm 0.123 grad 1.5; fake_score eps 0.5 grad 2"
    )
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert lines(1000, range(0, 1001, 500)) == []
    told = capsys.readouterr().err
    assert "stage 1/2 kd 100%" in told
    assert "left" in told
    assert "1,000 images; 12.3 images/s; 1.50 GiB; frechet 3 (best 2); generator dm 0.123 grad 1.5" in told


@pytest.fixture
def position():
    return Position()


def test_the_pace_is_that_of_the_cycles_since_it_was_asked(position):
    waited = iter((0.5, 0.5, 1.3, 1.4))
    pace = Pace(torch.device("cpu"), position, waited.__next__)
    assert "pace/images_per_second" not in pace.figures()
    position.seconds, position.images, position.cycle = 2.0, 64, 4
    found = pace.figures()
    assert found["pace/waited_for_data"] == pytest.approx(0.2)
    assert (found["pace/images_per_second"], found["pace/seconds_per_cycle"], found["pace/seconds"]) == (32, 0.5, 2)
    assert found["memory/gib"] > 0.01
    position.seconds, position.images, position.cycle = 3.0, 128, 5
    assert pace.figures()["pace/images_per_second"] == 64


def test_a_stage_foretells_its_end_once_and_without_its_first_cycle(position):
    pace = Pace(torch.device("cpu"), position)
    position.seconds, position.images = 60.0, 10  # a compiling cycle
    assert pace.foretold(1010) is None
    position.seconds, position.images = 60 + KNOWN_S, 110
    assert pace.foretold(1010) == "20 images/s: the stage is over in about 45 s"
    position.images = 210
    assert pace.foretold(1010) is None


def test_a_stage_of_so_many_minutes_is_not_foretold_to_take_longer(position):
    pace = Pace(torch.device("cpu"), position)
    assert pace.foretold(10**8, 2.0) is None
    position.seconds, position.images = 40.0, 800
    assert pace.foretold(10**8, 2.0) == "20 images/s: the stage is over in about 80 s"


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_in_words(seconds, words):
    assert spoken(seconds) == words
    assert (sized(GIB), sized(2**20)) == ("1 GiB", "1 MiB")


def test_what_no_two_runs_share_is_in_a_log_of_its_own_and_in_the_trackers(tmp_path):
    helper = accelerator()
    log = RunLog(helper, tmp_path)
    for cycle in (1, 2, 3):
        figures = {"images": 4 * cycle, "generator/dm": 0.5}
        log.write(stage=0, cycle=cycle, step=4 * cycle, values=figures, pace={"time": 1e9, "memory/gib": 1.0})
    assert "memory" not in (tmp_path / "log.jsonl").read_text()
    paces = [json.loads(line) for line in (tmp_path / PACE).read_text().splitlines()]
    assert paces[0] == {"stage": 0, "cycle": 1, "images": 4, "time": 1e9, "memory/gib": 1.0}
    assert helper.told[0] == (4, {"images": 4, "generator/dm": 0.5, "time": 1e9, "memory/gib": 1.0})
    log.rewind(0, 2)
    assert [json.loads(line)["cycle"] for line in (tmp_path / PACE).read_text().splitlines()] == [1, 2]


def test_trackers_get_pictures_and_their_health(tmp_path):
    board, wandb, mlflow = Tracker("tensorboard"), Tracker("wandb"), SimpleNamespace(name="mlflow", told=[])
    mlflow.log_artifact = lambda file, artifact_path: mlflow.told.append((artifact_path, Image.open(file).size))
    helper = accelerator(board, wandb, mlflow)
    picture = Image.new("L", (6, 4), 200)
    RunLog(helper, tmp_path).pictures({"previews/student": picture}, {"health/std": 0.5}, step=8)
    ((values, step, settings),) = board.pictures
    assert (values["previews/student"].shape, step, settings) == ((1, 4, 6, 3), 8, {"dataformats": "NHWC"})
    assert wandb.pictures[0][2] == {}
    assert mlflow.told == [("previews/student", (6, 4))]
    assert helper.told == [(8, {"health/std": 0.5})]


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(accelerator(main=False), tmp_path)
    log.about = {"header": {}}
    log.begin(0)
    log.write(stage=0, cycle=1, step=1, values={"images": 1}, pace={"time": 0.0})
    log.pictures({}, {"health/std": 1.0}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_every_figure_and_picture(tmp_path):
    helper = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=tmp_path / "trackers")
    log = RunLog(helper, tmp_path)
    log.begin(0)
    log.write(stage=0, cycle=1, step=4, values={"images": 4, "fake_score/grad": 2.0}, pace={"memory/gib": 1.0})
    log.pictures({"previews/student": Image.new("RGB", (6, 4))}, {"health/std": 0.5}, step=4)
    helper.end_training()
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload().Tags()
    assert {"fake_score/grad", "memory/gib", "health/std"} <= set(found["scalars"])
    assert found["images"] == ["previews/student"]


def test_what_libraries_repeat_is_said_once():
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    root, logger = logging.getLogger("diffusers"), logging.getLogger("diffusers.models.some")
    root.addHandler(handler)
    try:
        with said_once():
            for name in ("a", "a", "b", "a"):
                logger.warning("kept in float32: %s", name)
        logger.warning("kept in float32: a")
    finally:
        root.removeHandler(handler)
    assert heard == ["kept in float32: a", "kept in float32: b", "kept in float32: a"]
