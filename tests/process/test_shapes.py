"""Sizes of equal name agree within a call: of what is asked of it, and of what it gives."""

from functools import partial

import jaxtyping
import pytest
import shapes
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from fastgen.process import Flow, Prediction

Rows = Float[Tensor, "batch"]


def test_fastgens_own_functions_and_dataclasses_are_checked():
    x, t = torch.zeros(4, 2), torch.full((4,), 0.5)
    for call, given in (
        (Flow().renoise, (x, t, x)),
        (partial(Prediction.of_x0, Flow()), (x, t, x)),
        (partial(Prediction, Flow()), (t, x, x)),
    ):
        call(*given)
        with pytest.raises((BeartypeCallHintViolation, jaxtyping.TypeCheckError)):
            call(*(part[:3] if part is t else part for part in given))


def paired(a: Rows, b: Rows) -> Rows:
    return torch.cat([a, b])[: len(a)] if a.any() else torch.cat([a, b])


class Held:
    size = 3

    @classmethod
    def of_class(cls, a: Rows, b: Rows) -> None: ...

    @staticmethod
    def of_none(a: Rows, b: Rows) -> None: ...

    def of_one(self, a: Rows, b: Rows) -> None: ...

    @property
    def rows(self) -> Rows:
        return torch.zeros(self.size, 1)


def test_sizes_agree_among_arguments_and_with_the_result():
    call, ones = shapes.checked(paired, typechecker=beartype), torch.ones(3)
    assert call(ones, ones).shape == (3,)
    for a, b in [(ones, ones[:2]), (ones, ones.long()), (ones * 0, ones)]:
        with pytest.raises(BeartypeCallHintViolation):
            call(a, b)
    assert call(ones[:2], ones[:2]).shape == (2,), "each call has sizes of its own"


def test_a_call_within_another_has_sizes_of_its_own():
    inner = shapes.checked(paired, typechecker=beartype)

    def outer(a: Rows) -> Rows:
        inner(torch.ones(5), torch.ones(5))
        return a

    assert len(shapes.checked(outer, typechecker=beartype)(torch.ones(2))) == 2


@pytest.mark.parametrize("name", ["of_class", "of_none", "of_one"])
def test_members_of_a_class_are_checked(name: str):
    member = Held.__dict__[name]
    call = shapes.checked(member, typechecker=beartype).__get__(Held(), Held)
    call(torch.ones(3), torch.ones(3))
    with pytest.raises(BeartypeCallHintViolation):
        call(torch.ones(3), torch.ones(2))


def test_a_property_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        shapes.checked(Held.__dict__["rows"], typechecker=beartype).__get__(Held(), Held)


def test_nothing_is_checked_where_that_is_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    shapes.checked(paired, typechecker=beartype)(torch.ones(3), torch.ones(2))
