import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture
def assets() -> Path:
    """Real data, teachers and extractors: a folder laid out as data/ teachers/ extractors/."""
    folder = os.environ.get("FASTGEN_ASSETS")
    if not folder:
        pytest.skip("FASTGEN_ASSETS is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"FASTGEN_ASSETS={folder} does not exist")
    return Path(folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def near_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stranger's own lines, run in this process: what they see is the same, only less strange, and sooner."""
    from fastgen.export import stranger

    def run(command: list[str], **_: object) -> SimpleNamespace:
        try:
            stranger.main(json.loads(Path(command[-1]).read_text(encoding="utf-8")))
        except Exception as error:
            return SimpleNamespace(returncode=1, stderr=repr(error))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr("fastgen.export.verify.subprocess.run", run)
