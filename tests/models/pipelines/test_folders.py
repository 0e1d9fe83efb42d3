"""What a folder holds, told by its files, and what is said where another kind of folder is wanted."""

from pathlib import Path

import pytest

from fastgen.errors import UserError
from fastgen.models.pipelines.folders import by_count, check_is_pipeline, is_lora, is_run, is_student
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.students import Students

KINDS = {
    "whole": (["model_index.json", "fastgen.json"], None),
    "counted": (["4step/model_index.json", "16step/model_index.json"], "each of 4, 16 steps, and one .*/4step$"),
    "lora": (["fastgen.json", "scheduler/scheduler_config.json"], "a student's LoRA, .* in teacher.loras$"),
    "counted lora": (["fastgen.json", "4step/scheduler/scheduler_config.json"], "a student's LoRA"),
    "several": (["a/model_index.json", "b/model_index.json"], "holds 2 students, .* give one of them, as .*/a$"),
    "run": (["config.yaml", "student/model_index.json"], "is the folder of a run: give its student, .*/student$"),
    "part": (["config.json"], r"no model_index.json \(found: config.json\)"),
    "empty": ([], "found: nothing"),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path: Path) -> str:
    for name in KINDS[request.param][0]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    if request.param == "several":
        Students(("a", "b"), classes=((0,), (1,))).write(tmp_path)
    return request.param


def test_what_is_no_whole_pipeline_is_told_by_what_it_is(kind: str, tmp_path: Path):
    _, said = KINDS[kind]
    if said is None:
        check_is_pipeline(tmp_path)
        return
    with pytest.raises(UserError, match=said):
        check_is_pipeline(tmp_path)
    with pytest.raises(UserError, match=said):
        load(tmp_path, device="cpu")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no pipeline folder .*nowhere'"):
        check_is_pipeline(tmp_path / "nowhere")


def test_a_folder_is_known_by_its_files(kind: str, tmp_path: Path):
    assert is_student(tmp_path) == (kind not in ("run", "part", "empty"))
    assert is_run(tmp_path) == (kind == "run")
    assert is_lora(tmp_path) == ("lora" in kind)
    assert list(by_count(tmp_path)) == {"counted": [4, 16], "counted lora": [4]}.get(kind, [])
