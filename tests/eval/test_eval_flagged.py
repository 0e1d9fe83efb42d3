"""Pictures that a pipeline's safety checker blackened, and the size of a student, in a report."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from encoded import save
from eval_place import COUNT, evaluate, place, rows_of, value
from PIL import Image
from safety import with_checker

from eval.collect import Collector
from eval.columns import Eyes
from eval.images.decode import ImageBatch
from eval.rows import Flagged
from fastgen.cli import main
from fastgen.models.pipelines.notes import Notes

__all__ = ["place"]


@pytest.fixture(scope="module")
def checked(place: Path) -> Path:
    """A text pipeline whose safety checker blackens some pictures."""
    with_checker(tiny.stable_diffusion()).save_pretrained(place / "checked")
    return place / "checked"


def black(folder: Path) -> list[bool]:
    return [not np.asarray(Image.open(folder / f"{i}.png")).any() for i in range(COUNT)]


def test_blackened_pictures_are_counted_and_left_out_on_request(
    place: Path, checked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = save(place / "prompts.txt", "fox\nowl\n")
    asked = ["--student", str(checked), "--steps", "1", "--prompts", str(prompts), "--gallery", str(COUNT)]
    asked += ["--metrics", "fid,diversity", "--batch-size", "7"]
    assert evaluate(place, tmp_path / "all", *asked) == 0
    row = rows_of(tmp_path / "all")[1]
    found = black(tmp_path / "all" / "images" / "student-1")
    assert [i for i, one in enumerate(found) if one] == [one["image"] for one in row["flagged"]]
    assert {flag for one in row["flagged"] for flag in one["flags"]} == {"nsfw_content_detected"}
    assert 0 < sum(found) < COUNT - 8
    assert row["num"] == COUNT
    told = f"blackened {sum(found)} images (nsfw_content_detected); they count in the figures"
    assert told in capsys.readouterr().out
    assert told in (page := (tmp_path / "all" / "report.html").read_text())
    assert page.count("<small>nsfw_content_detected</small>") == sum(found)

    assert evaluate(place, tmp_path / "kept", *asked, "--skip-flagged") == 0
    kept = rows_of(tmp_path / "kept")[1]
    assert kept["flagged"] == row["flagged"]
    assert kept["num"] == COUNT - sum(found)
    assert "they are left out of the figures" in capsys.readouterr().out
    assert black(tmp_path / "kept" / "images" / "student-1") == found  # still shown
    for i, shown in enumerate(found):  # what is left is measured as files would be
        if not shown:
            save(
                tmp_path / "files" / f"{i}.png", (tmp_path / "kept" / "images" / "student-1" / f"{i}.png").read_bytes()
            )
    files = ["--student", str(tmp_path / "files"), "--metrics", "fid", "--num", str(kept["num"])]
    assert evaluate(place, tmp_path / "again", *files) == 0
    assert value(rows_of(tmp_path / "again")[1], "fid") == pytest.approx(value(kept, "fid"), rel=1e-6)
    assert value(kept, "fid") != pytest.approx(value(row, "fid"), rel=1e-3)


def test_files_of_the_sampler_keep_their_flags(place: Path, checked: Path, tmp_path: Path) -> None:
    asked = ["--prompt", "fox", "--num", str(COUNT), "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "s")]
    assert main(["sample", str(checked), *asked]) == 0
    images = json.loads((tmp_path / "s" / "samples.json").read_text())["images"]
    student = ["--student", str(tmp_path / "s"), "--metrics", "fid,diversity"]
    assert evaluate(place, tmp_path / "out", *student) == 0
    row = rows_of(tmp_path / "out")[1]
    assert [one["image"] for one in row["flagged"]] == [i for i, one in enumerate(images) if one["flags"]]
    assert row["flagged"]


def test_teacher_and_student_are_drawn_at_the_students_size(place: Path, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        tiny.stable_diffusion().save_pretrained(tmp_path / name)
    Notes(steps=(1,), arguments={"height": 32, "width": 48}).write(tmp_path / "student")
    prompts = save(tmp_path / "prompts.txt", "fox\n")
    sides = ["--student", str(tmp_path / "student"), "--teacher", str(tmp_path / "teacher"), "--teacher-steps", "2"]
    asked = ["--prompts", str(prompts), "--metrics", "fid", "--gallery", "1", "--teacher-guidance", "3"]
    assert evaluate(place, tmp_path / "out", *sides, *asked, "--negative-prompt", "owl") == 0
    _, teacher, _, student = rows_of(tmp_path / "out")
    assert student["source"]["arguments"] == {"guidance_scale": 1.0, "height": 32, "width": 48}
    assert teacher["source"]["arguments"] == {"guidance_scale": 3.0, "height": 32, "width": 48}
    assert (teacher["source"]["guidance"], student["source"]["guidance"]) == (3, 1)
    assert (teacher["source"]["negative_prompt"], student["source"]["negative_prompt"]) == ("owl", None)
    for row in ("teacher-2", "student-1"):
        assert Image.open(tmp_path / "out" / "images" / row / "0.png").size == (48, 32)
    assert evaluate(place, tmp_path / "small", *sides[:2], *asked, "--height", "16", "--width", "16") == 0
    assert Image.open(tmp_path / "small" / "images" / "student-1" / "0.png").size == (16, 16)


def test_what_changes_nothing_is_a_warning(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, labels = save(tmp_path / "p.txt", "fox\n"), save(tmp_path / "l.txt", "1\n")
    drawn = ["--student", str(place / "student"), "--steps", "1", "--metrics", "fid", "--prompts", str(words)]
    assert evaluate(place, tmp_path / "a", *drawn, "--gallery", "0") == 0
    assert (
        "--prompts changes nothing: ConsistencyModelPipeline is not conditioned on prompts" in capsys.readouterr().err
    )
    files = ["--student", str(place / "real"), "--metrics", "fid", "--gallery", "0", "--labels", str(labels)]
    assert evaluate(place, tmp_path / "b", *files, "--guidance", "3", "--steps", "2") == 0
    told = capsys.readouterr().err
    assert "--guidance changes nothing" in told
    assert "--steps changes nothing" in told
    assert "--labels changes nothing" in told


def test_images_drawn_for_other_prompts_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"file": f"{i:02d}.png", "prompt": f"prompt {i}"} for i in range(COUNT)]
    for i in range(COUNT):
        save(tmp_path / "s" / f"{i:02d}.png", (place / "real" / f"{i:02d}.png").read_bytes())
    save(tmp_path / "s" / "samples.json", json.dumps({"images": images}))
    words = save(tmp_path / "p.txt", "".join(f"prompt {i}\n" for i in range(COUNT - 1)))
    assert evaluate(place, tmp_path / "out", "--student", str(tmp_path / "s"), "--prompts", str(words)) == 2
    assert "was drawn for prompts that --prompts does not hold, such as 'prompt 23'" in capsys.readouterr().err


def test_what_is_left_keeps_its_number_and_label() -> None:
    flags = ((), ("nsfw_content_detected",), (), ("nsfw_content_detected",))
    pictures = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    batch = ImageBatch(pictures, torch.arange(4), numbers=(5, 6, 7, 8), flags=flags)
    collector = Collector(Eyes(None), frozenset({"labels"}), first=0, pictures=9, seed=0, skip_flagged=True)
    collector.update(batch.asked_for(tuple("abcd")))
    seen = collector.seen(())
    assert seen.columns["numbers"].tolist() == [5, 7]
    assert seen.columns["labels"].tolist() == [0, 2]
    assert seen.flagged == (Flagged(6, flags[1]), Flagged(8, flags[1]))
    assert sorted(seen.pictures) == [5, 6, 7, 8]
    assert batch.asked_for(tuple("abcd")).only([0, 2]).prompts == ("a", "c")
