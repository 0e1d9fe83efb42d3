import pytest
from families import FAMILIES


@pytest.fixture
def without_binning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sana's call moves any size to one of its own, all of them large."""
    monkeypatch.setattr(
        "fastgen.distillation.teacher.size_arguments", lambda _, height, width, **__: dict(FAMILIES["sana"].size)
    )
