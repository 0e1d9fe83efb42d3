"""A hub that takes a question and never answers it, or is not there."""

import socket

import pytest
from huggingface_hub import close_session, constants, get_session
from huggingface_hub.errors import HTTPError

from fastgen.errors import UserError
from fastgen.models.pipelines import loading


@pytest.fixture
def silent(monkeypatch):
    """Its address."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    close_session()


def test_a_hub_that_does_not_answer_is_not_waited_for(silent):
    assert get_session().timeout.read is None
    loading.answer_within(0.2)
    with pytest.raises(HTTPError, match="timed out"):
        get_session().get(silent)


def test_a_pipeline_of_such_a_hub_is_an_error_in_words(silent, monkeypatch):
    monkeypatch.setattr(loading, "HUB_S", 0.2)
    monkeypatch.setattr(loading.DiffusionPipeline, "download", lambda *_, **__: get_session().get(silent), raising=True)
    with pytest.raises(UserError, match=r"'owner/name' is neither a folder here nor a pipeline .*timed out"):
        loading.locate("owner/name")


def test_a_misspelt_path_of_two_parts_is_told_with_what_is_beside_it(tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    (tmp_path / "runs" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading.DiffusionPipeline, "download", offline)
    with pytest.raises(
        UserError, match=r"'runs/studnt' is neither a folder here \(did you mean student\?\) nor .*no netw"
    ):
        loading.locate("runs/studnt")
