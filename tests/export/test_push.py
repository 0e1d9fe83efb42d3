"""A push through the hub's own client, to a hub of this machine: what arrives is the folder."""

import fake_hub
import pytest
from huggingface_hub import HfApi, constants

from fastgen.errors import UserError
from fastgen.export.export import push


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_every_file_of_an_export_arrives_in_a_private_repository(tmp_path, online):
    (tmp_path / "unet").mkdir()
    files = {"README.md": b"# a card", "unet/model.safetensors": bytes(range(256)) * 8, "images/0.png": b"\x89PNG"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with fake_hub.serving() as hub:
        address = push(tmp_path, "me/mine", api=HfApi(endpoint=hub.url, token="hf_" + "PushPushPushPush1"))
    assert address.startswith(hub.url)
    assert hub.repositories == {"me/mine": True}
    assert {path: content for (_, path), content in hub.files.items()} == files


def test_a_hub_that_is_not_there_is_said(tmp_path, online):
    with fake_hub.serving() as hub:
        pass
    with pytest.raises(UserError, match="could not be pushed to 'me/mine'"):
        push(tmp_path, "me/mine", api=HfApi(endpoint=hub.url, token="hf_" + "PushPushPushPush1"))
