"""What is made wrong on purpose, and the check that has to notice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jaxtyping
import pytest

Patch = tuple[object, str, object]
"""(owner, name, wrong version) of what is replaced."""


@dataclass(frozen=True)
class Mutant:
    """What is replaced, and the check that has to notice."""

    patches: Sequence[Patch]
    check: Callable[[], None]

    @classmethod
    def of(cls, owner: object, name: str, wrong: object, check: Callable[[], None]) -> "Mutant":
        """One that is wrong in one place."""
        return cls([(owner, name, wrong)], check)

    def must_be_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The check passes on the code as it is, and fails on the mutant, by its values and not by their shapes."""
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        self.check()
        for patch in self.patches:
            monkeypatch.setattr(*patch)
        with pytest.raises(AssertionError):
            self.check()
