"""Tables of trials: their budgets, what is done again and what is not, and the record that a trial leaves."""

import dataclasses
import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from made_up_report import report

from benchmarks.trials import conduct as conducting
from benchmarks.trials.conduct import FailedError, OutOfTimeError, Terms, conduct
from benchmarks.trials.protocols import PROTOCOLS, Protocol, halves, unseen
from benchmarks.trials.record import Record
from benchmarks.trials.table import Table, Trial, tables
from fastgen.config.shipped import shipped
from fastgen.errors import UserError

LOG = [
    {"stage": 0, "cycle": 0, "images": 0, "quality/fid": 90.123456},
    {"stage": 0, "cycle": 10, "images": 2560, "generator/regression": 0.1},
    {"stage": 0, "cycle": 20, "images": 5120, "quality/fid": 12.0},
    {"stage": 1, "cycle": 10, "images": 2560, "quality/fid": None},
    {"stage": 1, "cycle": 30, "images": 7680, "quality/fid": 1.5},
]


def test_a_budget_keeps_the_proportions_of_the_stages():
    trial = Trial(config="cifar10/compare/dmd2", set=("train.batch=8",))
    stages = trial.loaded(*trial.budget(7.0)).stages
    assert [stage.train.minutes for stage in stages] == pytest.approx([1.6, 5.4])
    single = Trial(config="emoji/tdm_4step")
    assert single.budget(2.0) == ["train.minutes=2"]
    with pytest.raises(UserError, match="no minutes for its stage kd"):
        Trial(config="cifar10/dmd2_1step").budget(1.0)


@pytest.mark.parametrize("name", tables())
def test_a_table_names_configs_that_exist(name):
    table = Table.read(name)
    assert {trial.config for trial in table.trials.values()} <= shipped().keys()
    first, *_, last = table.trials
    assert list(table.only([first])) == [first]
    assert list(table.only([last, first])) == [last, first]
    with pytest.raises(UserError, match="no trial is called nothing"):
        table.only(["nothing"])


@pytest.mark.slow  # six seconds of reading: a hundred configs with their overrides
@pytest.mark.parametrize("name", tables())
def test_every_trial_of_a_table_has_its_budget(name):
    table = Table.read(name)
    for trial in table.trials.values():
        stages = trial.loaded(*trial.budget(table.minutes)).stages
        if trial.ends == "images":
            assert {stage.train.minutes for stage in stages} == {None}
            continue
        assert sum(stage.train.minutes for stage in stages) == pytest.approx(table.minutes, rel=1e-3)


def test_unseen_captions_are_of_names_and_styles_that_do_not_meet():
    rows = [{"name": name, "style": style} for name, style in (("fox", "a"), ("fox", "b"), ("owl", "a"), ("elk", "b"))]
    assert sorted(unseen(rows)) == ["elk, a", "owl, b"]


def test_halves_share_no_name():
    rows = [{"name": f"thing {i}", "caption": f"thing {i}, {style}"} for i in range(200) for style in "abc"]
    trained, other = halves(rows).values()
    assert sorted(trained + other) == sorted(row["caption"] for row in rows)
    assert not {line.partition(",")[0] for line in trained} & {line.partition(",")[0] for line in other}
    assert 240 < len(trained) < 360
    assert halves(rows[::-1])["trained"] == trained[::-1]


def half(folder: Path) -> Protocol:
    """The protocol of halves, with files of prompts."""
    for name, lines in {"seen": 8, "trained": 3, "other": 5, "unseen": 1, "variety": 2}.items():
        (folder / f"{name}.txt").write_text("a prompt\n" * lines)
    return PROTOCOLS["emoji_half"]


def test_a_rewarded_student_is_trained_on_half_and_judged_on_both(tmp_path):
    protocol = half(tmp_path)
    assert f"data.path={tmp_path}/trained.txt" in protocol.places(tmp_path, tmp_path, "prompts")
    with pytest.raises(UserError, match="not on parquet"):
        protocol.places(tmp_path, tmp_path, "parquet")
    usual = ["seen", "unseen", "variety", "trained", "other"]
    assert list(protocol.reports(tmp_path, tmp_path)) == usual
    (tmp_path / "judge").mkdir()
    reports = protocol.reports(tmp_path / "assets", tmp_path)
    assert list(reports) == [*usual, "judge_trained", "judge_other"]
    said = {name: " ".join(options) for name, options in reports.items()}
    assert f"--clip {tmp_path}/judge " in said["judge_trained"]
    assert f"--clip {tmp_path}/assets/extractors/emoji_clip " in said["trained"]
    assert "--num-images 3 " in said["judge_trained"]
    assert f"--prompts {tmp_path}/other.txt " in said["judge_other"]
    assert "--num-images 8 " in said["variety"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> str:
    """What an evaluation writes."""
    return json.dumps(report(tmp_path_factory.mktemp("report")) | {"gallery": None})


@pytest.fixture
def commands(monkeypatch, measured) -> list[list[str]]:
    """The commands that were carried out; each leaves what the real one would, and those named in `broken` fail."""
    done: list[list[str]] = []

    def carried_out(command, log, terms, card):
        done.append([*command, str(card)])
        out = Path(command[command.index("--out") + 1] if "eval" in command else command[3].removeprefix("out="))
        if out.parent.name == "broken":
            raise FailedError("fastgen: error: the loss is not finite")
        if out.parent.name == "slow":
            raise OutOfTimeError
        out.mkdir(parents=True)
        if "eval" in command:
            (out / "metrics.json").write_text(measured)
            (out / "report.html").write_text("")
        else:
            (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
            for stage, seconds, images in (("kd", 10.0, 5120), ("dmd2", 30.0, 7680)):
                (out / "stages" / stage).mkdir(parents=True)
                (out / "stages" / stage / "about.json").write_text(json.dumps({"seconds": seconds, "images": images}))
        return 42.0

    monkeypatch.setattr(conducting, "_carried_out", carried_out)
    return done


def terms(folder: Path, *, cards: int = 0, deadline: float = math.inf) -> Terms:
    protocol = Protocol(
        prepare=lambda assets, shared: shared.mkdir(parents=True, exist_ok=True),
        places=lambda assets, shared, source: [f"data.source={source}"],
        watched=lambda assets, shared: [],
        reports=lambda assets, shared: {"seen": ["--seen"], "unseen": ["--unseen"]},
    )
    return Terms(folder, folder, protocol, 3.5, deadline, cards, 1, "abc", (), ("--num-images", "64"))


def test_a_trial_leaves_a_record_and_is_not_done_again(tmp_path, commands):
    trials = {"mine": Trial(config="cifar10/compare/dmd2", seed=3, steps=(1, 4), note="a note")}
    assert conduct(trials, terms(tmp_path, cards=1)) == {"mine": "done"}
    assert [command[0] for command in commands] == ["train.py", "-m", "-m"]
    assert {"seed=3", "data.source=parquet", "stages.1.train.minutes=2.7", "0"} <= set(commands[0])
    assert "--steps 1,4 --seen" in " ".join(commands[1])
    found = Record.read(tmp_path / "records/mine.json")
    assert (found.config, found.seed, found.commit, found.note) == ("cifar10/compare/dmd2", 3, "abc", "a note")
    assert (found.card, found.seconds, found.cycles_seconds) == ("cpu, x86_64", 42, 40)
    assert found.updates == {"kd": 20, "dmd2": 30}
    assert [(point.seconds, point.images, point.fid) for point in found.curve] == [
        (0, 0, Decimal("90.12")),
        (10, 5120, 12),
        (40, 12800, Decimal("1.5")),
    ]
    assert [row.steps for row in found.rows] == [1, 2, 4]
    assert found.rows[2].figures["fid"] == found.rows[2].figures["unseen.fid"] == Decimal("3.9")
    assert found.rows[0].figures["dB 4-8"] == 12
    assert conduct(trials, terms(tmp_path)) == {"mine": "done before"}
    assert len(commands) == 3


def test_a_trial_may_have_a_protocol_of_its_own(tmp_path, commands, monkeypatch):
    mine = dataclasses.replace(
        terms(tmp_path).protocol, places=lambda *_: ["data.path=half"], reports=lambda *_: {"": ["--halves"]}
    )
    monkeypatch.setitem(PROTOCOLS, "mine", mine)
    trials = {"a": Trial(config="cifar10/compare/dmd2", protocol="mine"), "b": Trial(config="cifar10/compare/dmd2")}
    conduct(trials, terms(tmp_path))
    assert ["data.path=half" in command for command in commands if "train.py" in command] == [True, False]
    assert ["--halves" in command for command in commands if "eval" in command] == [True, False, False]
    table = tmp_path / "odd.yaml"
    table.write_text("{protocol: emoji, minutes: 1, trials: {a: {config: emoji/tdm_4step, protocol: nothing}}}")
    with pytest.raises(UserError, match="the protocol nothing"):
        Table.read(str(table))


def test_what_was_cut_off_goes_on_and_what_failed_is_tried_again(tmp_path, commands):
    trial = Trial(config="emoji/tdm_4step")
    assert conduct({"late": trial}, terms(tmp_path, deadline=-math.inf)) == {"late": "left"}
    assert not commands
    states = conduct({"broken": trial, "slow": trial}, terms(tmp_path))
    assert states == {"broken": "failed: fastgen: error: the loss is not finite", "slow": "left"}
    assert Record.read(tmp_path / "records/broken.json").failed == "fastgen: error: the loss is not finite"
    assert not (tmp_path / "records/slow.json").exists()
    conduct({"broken": trial}, terms(tmp_path))
    assert len(commands) == 3


def test_a_trained_student_is_only_measured(tmp_path, commands):
    trial = Trial(config="cifar10/compare/dmd2")
    conduct({"mine": trial}, terms(tmp_path))
    (tmp_path / "records/mine.json").unlink()
    (tmp_path / "mine/report-unseen/report.html").unlink()
    (tmp_path / "mine/report-unseen/metrics.json").unlink()
    (tmp_path / "mine/report-unseen").rename(tmp_path / "gone")
    commands.clear()
    assert conduct({"mine": trial}, terms(tmp_path)) == {"mine": "done"}
    assert ["--unseen" in command for command in commands] == [True]
    assert Record.read(tmp_path / "records/mine.json").seconds == 42


def test_digits_are_kept_as_they_are_written(tmp_path):
    bare = {"name": "a", "config": None, "commit": None, "seed": None, "card": None, "at_once": None}
    text = json.dumps(bare)[:-1] + ', "rows": [{"steps": 4, "figures": {"fid": 1.00, "recall": 34}}]}'
    (tmp_path / "a.json").write_text(text)
    (row,) = Record.read(tmp_path / "a.json").rows
    assert {name: str(value) for name, value in row.figures.items()} == {"fid": "1.00", "recall": "34"}


def test_a_command_ends_at_the_deadline_and_says_how_it_failed(tmp_path):
    with pytest.raises(OutOfTimeError):
        conducting._carried_out(
            ["-c", "import time; time.sleep(60)"], tmp_path / "a/one", terms(tmp_path, deadline=0), None
        )
    fails = "import sys; print('fastgen: error: no such teacher', file=sys.stderr); print('bye'); sys.exit(2)"
    with pytest.raises(FailedError, match="no such teacher"):
        conducting._carried_out(["-c", fails], tmp_path / "a/two", terms(tmp_path), None)


def test_a_trial_s_card_is_one_of_those_that_its_table_was_given(tmp_path, monkeypatch):
    def sees(card: int, name: str) -> bool:
        shows = f"import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == '{name}'"
        return conducting._carried_out(["-c", shows], tmp_path / name, terms(tmp_path, cards=4), card) > 0

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sees(3, "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert sees(1, "5")
