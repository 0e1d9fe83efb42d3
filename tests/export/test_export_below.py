"""What a student's LoRA lies on: the teacher's variant, the LoRAs it was made with, and their names in the card."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import Student, adapted, family_student
from families import FAMILIES

from fastgen.cli import main
from fastgen.errors import UserError
from fastgen.export.card import card
from fastgen.export.lora import FILES, export_lora
from fastgen.export.rebuild import verify_lora
from fastgen.export.text import adapter_names, quoted
from fastgen.models.pipelines.notes import Notes, TeacherLoRA
from fastgen.models.pipelines.source import LoRAFile
from fastgen.models.pipelines.stacked import found, recorded
from fastgen.redaction import plain_markdown

FAMILY = FAMILIES["stable_diffusion"]
WICKED = 'a"); import os; os.system("x")\n```\n# [b](c) <img> | \\ \u202e\'é'


@pytest.fixture(scope="module")
def student() -> Student:
    return family_student("stable_diffusion", (2,), "renoise")


def lora_of(student: Student, folder: Path, *, seed: int = 0, **notes) -> Path:
    """The folder of a random LoRA on the student's teacher."""
    adapter = adapted(student.teacher.pipe, seed=seed)[1]
    return export_lora(student.teacher.pipe, adapter, replace(student.notes, **notes), folder, student.schedules)


def code_of(card: str) -> ast.Module:
    (block,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return ast.parse(block)


# Text


def test_no_text_of_a_path_becomes_code():
    assert ast.literal_eval(quoted(WICKED)) == WICKED
    assert quoted(WICKED).isprintable()
    assert "`" not in quoted(WICKED)
    assert plain_markdown(WICKED).isprintable()
    assert not re.search(r"(?<!\\)[`\[\]<>|#]", plain_markdown(WICKED))


def test_a_card_is_the_same_program_whatever_the_paths_are_called(tmp_path, student):
    cards = []
    for folder, name in (("wicked", WICKED), ("plain", "style")):
        below = TeacherLoRA(place=name, file=f"{name}.safetensors", weight=0.5)
        made = lora_of(student, tmp_path / folder, teacher=name, hub=False, variant=name, loras=(below,))
        cards.append((made / "README.md").read_text())
    wicked, plain = (code_of(card) for card in cards)
    calls = [[ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)] for tree in (wicked, plain)]
    assert calls[0] == calls[1]
    texts = [node.value for node in ast.walk(wicked) if isinstance(node, ast.Constant)]
    assert {WICKED, f"{WICKED}.safetensors"} <= set(texts)
    assert cards[0].count("\n```") == cards[1].count("\n```") == 2
    assert "\n# [" not in cards[0]


def test_every_lora_has_a_sensible_name_of_its_own():
    files = [(".", "style.safetensors"), ("x/ink", FILES["diffusers"]), ("o/n", "style.safetensors")]
    files += [(".", FILES["diffusers"]), ("y", "fewstep.safetensors"), ("y", "--.safetensors")]
    names = adapter_names([TeacherLoRA(place=place, file=file) for place, file in files])
    assert names == ["style", "ink", "style_2", "lora", "fewstep_3", "lora_2"]


# Variant


@pytest.mark.usefixtures("verified_here")
def test_a_lora_on_a_variant_verifies_and_its_card_asks_for_it(tmp_path, student):
    FAMILY.build().to(torch.float16).save_pretrained(tmp_path / "base", variant="fp16")
    for variant in ("fp16", None):  # named, or the only one there is
        folder = lora_of(student, tmp_path / "lora", teacher="base", hub=False, variant=variant)
        assert verify_lora(folder, str(tmp_path / "base"))[0].difference <= 1e-5
    folder = lora_of(student, tmp_path / "lora", teacher="me/base", hub=True, variant="fp16", revision="r1")
    text = (folder / "README.md").read_text()
    assert '("me/base", variant="fp16", revision="r1")' in text
    assert "Teacher: me/base (variant fp16, revision r1)." in text
    assert Notes.read(folder).variant == "fp16"


# The LoRAs below


@pytest.fixture
def stack(tmp_path, monkeypatch, student) -> Path:
    """base, ink.safetensors and the LoRA of a student whose teacher is both, all in the current folder."""
    monkeypatch.chdir(tmp_path)
    student.teacher.pipe.save_pretrained("base")
    (lora_of(student, tmp_path / "made", seed=1) / FILES["diffusers"]).rename("ink.safetensors")
    _, below = recorded(LoRAFile(path="ink.safetensors", weight=0.6))
    assert below.place == "."
    lora_of(student, tmp_path / "lora", teacher="base", hub=False, loras=(below,))
    return tmp_path


@pytest.mark.usefixtures("verified_here")
def test_verify_finds_the_loras_below_by_itself(stack, monkeypatch, capsys):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr("fastgen.models.pipelines.opening.fuse", lambda pipe, files, second: seen.append((files, second)))
        with pytest.raises(UserError, match="differs from the sampler"):  # ours without a LoRA
            verify_lora(Path("lora"))
    assert [(file.name, weight) for file, weight in seen[0][0]] == [("ink.safetensors", 0.6), (FILES["diffusers"], 1.0)]
    assert main(["verify", "lora"]) == 0
    assert "lora at 2 steps: difference" in capsys.readouterr().out
    card = Path("lora/README.md").read_text()
    assert 'load_lora_weights("path/to", weight_name="ink.safetensors", adapter_name="ink")' in card


def test_loras_below_that_are_missing_changed_or_other_are_refused(stack):
    (below,) = Notes.read(Path("lora")).loras
    other = below.__class__(place=".", file="other.safetensors", weight=1.0, sha256="0" * 64)
    Path("other.safetensors").write_bytes(Path("lora", FILES["diffusers"]).read_bytes())
    with pytest.raises(UserError, match=r"other.safetensors is not the file that lay below .*, other.*--stack"):
        found([other], [])
    with pytest.raises(UserError, match=r"gives ink.safetensors the weight 0.5, but ink.safetensors x 0.6 \(sha256"):
        found([below], [(Path("ink.safetensors"), 0.5)])
    with pytest.raises(UserError, match=r"names other.safetensors, but below the student lay ink.safetensors x 0.6"):
        found([below], [(Path("other.safetensors"), None)])
    Path("ink.safetensors").rename("moved.safetensors")
    with pytest.raises(UserError, match=r"ink.safetensors x 0.6 .* lay below the student and is not at \.: say where"):
        found([below], [])
    (again,) = found([below], [(Path("moved.safetensors"), None)])
    assert (again.file, again.weight) == ("moved.safetensors", 0.6)
    assert [lora.weight for lora in found([], [(Path("moved.safetensors"), None)])] == [1.0]


def test_the_notes_name_no_folder_of_this_machine(stack):
    _, below = recorded(LoRAFile(path=str(stack / "ink.safetensors"), weight=0.6))
    assert below.place == stack.name
    assert below.sha256 == Notes.read(Path("lora")).loras[0].sha256


def test_a_card_names_the_teacher_as_the_config_does(student):
    told = {"objective": "dmd2", "hub": False}
    for teacher, shown_as in [("runs/digits/teacher/pipeline", "runs/digits/teacher/pipeline"), ("mine", "mine")]:
        text = card(student.pipe, replace(student.notes, teacher=teacher, **told))
        assert f"Objective: dmd2. Teacher: {shown_as}." in text
        assert "base_model" not in text
