"""Prompts of a large file are read where they lie."""

import pytest
from encoded import save

from fastgen.data import Loader, PromptFile
from fastgen.errors import UserError


@pytest.fixture(autouse=True)
def _every_file_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.data.prompts.HELD", 0)
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))


def test_lines_that_are_not_held_are_the_same(tmp_path, monkeypatch):
    content = "\ufeff one\r\n\n  \nzwei \u00e4\n" + "".join(f"prompt {i}\n" for i in range(500)) + "last"
    path = save(tmp_path / "p.txt", content)
    mapped = PromptFile(path)
    mapped.check()
    taken = Loader(mapped, seed=2).take(100, 700).prompts
    monkeypatch.setattr("fastgen.data.prompts.HELD", 2**20)
    held = PromptFile(path)
    assert isinstance(held.prompts, tuple)
    assert not isinstance(mapped.prompts, tuple)
    assert list(mapped.prompts) == list(held.prompts) == mapped.prompts[:]
    assert (mapped.prompts[0], mapped.prompts[-1]) == ("one", "last")
    assert taken == Loader(held, seed=2).take(100, 700).prompts


def test_where_lines_begin_is_found_once_for_each_content(tmp_path, monkeypatch):
    path = save(tmp_path / "p.txt", "a\nb\n")
    assert list(PromptFile(path).prompts) == ["a", "b"]
    save(path, "a longer line\nb\nc\n")
    assert list(PromptFile(path).prompts) == ["a longer line", "b", "c"]
    monkeypatch.setattr("fastgen.data.text.Lines._read", None)
    assert list(PromptFile(path).prompts) == ["a longer line", "b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\xff\n", "line 2: byte 0xff"),
        (b"a\nb\0\n", "line 2 holds a control character"),
        (b"a\n" + b"x" * (2**20 + 1), "line 2 has more than"),
        (b"\n \n", "no prompts"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        PromptFile(save(tmp_path / "p.txt", content)).check()
