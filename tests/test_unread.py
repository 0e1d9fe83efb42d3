"""Settings that nothing reads are refused by one rule, of dataclasses and of models alike."""

from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from fastgen.errors import UserError
from fastgen.unread import names_of, refuse_unread


@dataclass
class Plain:
    needed: int
    width: int = 3
    names: list[str] = field(default_factory=list)


class Model(BaseModel):
    needed: int
    width: int = 3
    names: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _width_is_read(self) -> "Model":
        if self.needed < 0:
            refuse_unread(self, "width", why="needed is below 0", remedy="set it to 0")
        return self


BOTH = pytest.mark.parametrize("kind", [Plain, Model])


@BOTH
def test_what_differs_from_its_default_is_told_with_its_reason_and_its_remedy(kind: type):
    words = r"^at.width is 4, but it is late, so that it would be ignored: get up, or leave it out$"
    with pytest.raises(UserError, match=words):
        refuse_unread(kind(needed=1, width=4), "names", "width", why="it is late", remedy="get up", within="at.")


@BOTH
def test_defaults_pass_though_nothing_reads_them_and_what_has_none_was_given(kind: type):
    settings = kind(needed=1)
    refuse_unread(settings, *names_of(settings, "needed"), why="it is late", remedy="get up")
    with pytest.raises(UserError, match="needed is 1, but it is late"):
        refuse_unread(settings, *names_of(settings), why="it is late", remedy="get up")


def test_within_a_config_it_is_one_of_its_mistakes():
    with pytest.raises(ValidationError, match="width is 4, but needed is below 0"):
        Model(needed=-1, width=4)
