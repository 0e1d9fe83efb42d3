import os
from pathlib import Path

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
