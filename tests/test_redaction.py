"""No secret leaves by what is printed, written or drawn."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from eval.provenance import circumstances
from fastgen import cli
from fastgen.export.text import public
from fastgen.redaction import plain_markdown, private, redacted, within

SECRET = "canary-0123456789"
PUBLIC = "me@host, a@b: hf_short, https://host/a, false-or-true"


@pytest.fixture(autouse=True)
def kept_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"https://me:{SECRET}@huggingface.co/a/b", "https://***@huggingface.co/a/b"),
        ("https://me:other@host/a is 3 x 4", "https://***@host/a is 3 x 4"),
        ("s3://abc@bucket/x?token=123&size=4", "s3://***@bucket/x?token=***&size=4"),
        ("hf_abcdefghijklmnopqrst is one", "*** is one"),
        (f"got {SECRET!r}", "got '***'"),
        (
            "me@host, a@b: hf_short, https://host/a, false-or-true",
            "me@host, a@b: hf_short, https://host/a, false-or-true",
        ),
    ],
)
def test_what_is_secret_is_hidden_and_the_rest_stays(text: str, told: str) -> None:
    assert redacted(text) == told
    assert within({"a": [text, 3]}) == {"a": [told, 3]}


def test_a_teacher_with_a_token_in_its_address_is_refused_without_it(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    place = f"https://me:{SECRET}@huggingface.co/owner/name"
    (tmp_path / "run.yaml").write_text(
        f"out: {tmp_path / 'x'}\nteacher: {{path: '{place}'}}\ndata: {{source: noise}}\n"
        "objective: {name: dmd2, gan: 0}\ntrain: {images: 100}\n"
    )
    for more in ([], ["--dry-run"], ["--dry-run", "--debug"], [f"objective.name={SECRET}"], [f"--{SECRET}"]):
        try:
            code = cli.main(["train", "--config", str(tmp_path / "run.yaml"), *more])
        except (SystemExit, Exception) as error:
            code = error.code if isinstance(error, SystemExit) else 2
        assert code == 2
    out, err = capfd.readouterr()
    assert "***" in out
    assert "***" in err
    assert SECRET not in out + err


def test_cards_and_reports_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", "--student", f"https://me:{SECRET}@host/a"])
    told = circumstances(torch.device("cpu"), datetime.now(UTC))
    assert SECRET not in json.dumps(told)
    shown = (plain_markdown(SECRET), public(f"/home/{SECRET}", hub=False), public(f"me/{SECRET}", hub=True))
    assert SECRET not in "".join(shown)


def test_the_trace_of_an_error_shows_none(capfd: pytest.CaptureFixture) -> None:
    with private():
        pass
    try:
        raise ValueError(f"no {SECRET}")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert "ValueError: no ***" in capfd.readouterr().err


def test_characters_that_a_terminal_lacks_are_escaped(capfd: pytest.CaptureFixture) -> None:
    with private():
        print("half \ud83d of one")
        print("here too: \udcff", file=sys.stderr)
    assert capfd.readouterr() == ("half \\ud83d of one\n", "here too: \\udcff\n")
