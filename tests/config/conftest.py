"""Configs are written to a file and read, or refused."""

import time

import pytest

from fastgen.config.schema import Config
from fastgen.config.yaml_file import load
from fastgen.errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes, *overrides: str) -> Config:
        file = tmp_path / "run.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(file, overrides)

    return read


@pytest.fixture
def refusal(read):
    """The words in which a text is refused; they come soon, on one screen, and name the file."""

    def refusal(text: str | bytes, *overrides: str) -> str:
        started = time.process_time()
        with pytest.raises(UserError) as refused:
            read(text, *overrides)
        assert time.process_time() - started < 3
        words = str(refused.value)
        assert "run.yaml" in words or "override" in words
        assert words.count("\n") <= 21
        return words

    return refusal
