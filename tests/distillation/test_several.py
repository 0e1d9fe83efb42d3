"""How the conditions are divided among several students, and what run each of them is."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from small_run import run_config

from fastgen.config.schema import Config
from fastgen.config.yaml_file import dump, fingerprint, load
from fastgen.data import Selection
from fastgen.distillation.several import PARTS, each_student, runs_of
from fastgen.distillation.student import Student
from fastgen.engine.loading import loader_of
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.students import Students

PROMPTS = ["fox", "red fox", "zebra", "a fox", "zebra zebra", "fox fox", "the zebra"]
BASE = {
    "device": "cpu",
    "student": {"steps": [1]},
    "objective": {"name": "dmd2", "gan": 0, "ratio": 1},
    "train": {"images": 8, "batch": 4},
}


def classes(folder: Path, students, **changes) -> Config:
    data = {"source": "noise", "num_classes": 10}
    teacher = {"path": str(folder / "teacher")}
    return load({**BASE, "out": str(folder / "out"), "teacher": teacher, "data": data, "students": students, **changes})


def prompts(folder: Path, students=2, texts=PROMPTS) -> Config:
    if not (folder / "teacher").exists():
        tiny.stable_diffusion().save_pretrained(folder / "teacher")
    (folder / "p.txt").write_text("".join(f"{text}\n" for text in texts))
    return classes(folder, students, data={"source": "prompts", "path": str(folder / "p.txt")})


@pytest.mark.parametrize(
    ("students", "expected"),
    [
        (2, [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]),
        (4, [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]),
        ([[0, 2, 4, 6, 8], [9, 7, 5, 3, 1]], [(0, 2, 4, 6, 8), (9, 7, 5, 3, 1)]),
    ],
)
def test_each_class_is_one_students(students, expected, tmp_path):
    config = classes(tmp_path, students)
    runs = runs_of(config)
    assert [run.only.classes for run in runs] == expected
    assert [run.out for run in runs] == [tmp_path / "out" / str(number) for number in range(len(expected))]
    assert [run.exported for run in runs] == [tmp_path / "out/student" / str(k) for k in range(len(expected))]
    for run, labels in zip(runs, expected, strict=True):
        assert set(loader_of(run, "data").take(0, 40).labels.tolist()) == set(labels)
        assert set(loader_of(run, "pairs").take(0, 40).labels.tolist()) == set(labels)
        assert runs_of(run) == (run,)
        (tmp_path / "again.yaml").write_text(dump(run))
        assert load(tmp_path / "again.yaml") == run
        others = {name: value for name, value in fingerprint(run).items() if name not in ("only", "students")}
        assert others == {name: value for name, value in fingerprint(config).items() if name in others}


@pytest.mark.parametrize(
    ("students", "said"),
    [
        (11, "there are 10 classes"),
        ([[0, 1, 2], [3, 4, 5, 6, 7, 8]], "class 9 is in no list"),
        ([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]], "class 10 is none of the data's 10"),
    ],
)
def test_classes_that_are_not_divided_whole_are_refused(students, said, tmp_path):
    with pytest.raises(UserError, match=said):
        runs_of(classes(tmp_path, students))


def test_nothing_of_others_is_written_over(tmp_path):
    config = classes(tmp_path, 2)
    config.exported.mkdir(parents=True)
    (config.exported / "README.md").write_text("of one student")
    with pytest.raises(UserError, match=r"out/student, which already holds README.md: give another"):
        each_student(config, lambda *_, **__: None, resume=True)
    assert (config.exported / "README.md").read_text() == "of one student"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"students": 1}, "greater than or equal to 2"),
        ({"students": [[0, 1], [1, 2]]}, "class 1 is in two lists"),
        ({"students": [[0, 1], []]}, "is empty"),
        ({"students": 2, "only": {"classes": [0]}}, "leave `only` out"),
        ({"students": 2, "evaluate": {"protocol": "digits"}}, "compares with digits of all classes"),
        ({"students": None, "only": {"classes": [0]}, "evaluate": {"protocol": "digits"}}, "of all classes"),
        ({"students": None, "only": {}}, "give `classes`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said, tmp_path):
    with pytest.raises(UserError, match=said):
        classes(tmp_path, **settings)


def test_nothing_to_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="the data has neither"):
        runs_of(classes(tmp_path, 2, data={"source": "noise"}))
    with pytest.raises(UserError, match="give the number of students"):
        runs_of(prompts(tmp_path, students=[[0], [1]]))
    with pytest.raises(UserError, match="3, but there are 2 different prompts"):
        each_student(prompts(tmp_path, students=3, texts=["fox", "owl", "fox"]), lambda *_, **__: None, resume=False)


def test_each_prompt_is_trained_on_by_the_student_that_will_answer_it(tmp_path):
    config, trained = prompts(tmp_path), []

    def train(run: Config, *, resume: bool) -> None:
        trained.append((run, resume))
        run.exported.mkdir(parents=True)
        (run.exported / "README.md").write_text(f"---\nlicense: mit\ntags:\n- of-{run.exported.name}\n---\n\n# One\n")

    assert [run.only for run in runs_of(config)] == [None, None]  # not divided yet
    each_student(config, train, resume=False)
    students = Students.read(config.exported)
    assert students.folders == ("0", "1")
    assert (config.exported / "README.md").read_text().startswith("---\nlicense: mit\ntags:\n- of-0\n---\n\n# Several")
    owners = students.owners(tiny.stable_diffusion(), {"prompt": PROMPTS})
    for number, (run, resume) in enumerate(trained):
        mine = [prompt for prompt, owner in zip(PROMPTS, owners, strict=True) if owner == number]
        assert mine
        assert not resume
        assert list(run.prompts) == mine
        assert set(loader_of(run, "data").take(0, 40).prompts) == set(mine)
    assert sorted(owners) != owners  # the parts lie among each other
    before = load_file(config.out / PARTS)
    with pytest.raises(UserError, match="already holds students"):
        each_student(config, train, resume=False)
    (config.out / "1/checkpoints").mkdir(parents=True)
    trained.clear()
    each_student(config, lambda run, *, resume: trained.append(resume), resume=True)
    assert trained == [False, True]  # of the first nothing was begun
    assert torch.equal(load_file(config.out / PARTS)["owners"], before["owners"])
    with pytest.raises(UserError, match=r"students is 3, but .* divided among 2"):
        each_student(prompts(tmp_path, students=3), train, resume=True)


def test_a_part_is_previewed_and_measured_by_what_it_is_trained_on(tmp_path):
    config = run_config(tmp_path, only=Selection(classes=(3, 8)))
    student = Student(config, Pipeline(tiny.class_conditional(size=16, channels=1)), torch.device("cpu"))
    assert student.asked(range(5)).labels.tolist() == [3, 8, 3, 8, 3]
