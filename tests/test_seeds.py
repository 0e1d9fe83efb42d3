"""Streams of rows: a sample's values depend on its place in the batch, not on how the batch is split."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen import seeds
from fastgen.objectives.parts.ops import picked
from fastgen.seeds import RowStream, integers, normal, uniform

CPU = torch.device("cpu")
BATCH = 12
DRAWS: dict[str, Callable[[Any, int], Tensor]] = {
    "noise": lambda rng, count: normal(rng, count, 3, 8, 8),
    "large noise": lambda rng, count: normal(rng, count, 4, 2**15),
    "times": lambda rng, count: uniform(rng, count, dtype=torch.float64),
    "normal times": lambda rng, count: normal(rng, count, dtype=torch.float64),
    "picks": lambda rng, count: picked(torch.arange(6.0).expand(count, -1), rng),
    "numbers": lambda rng, count: integers(rng, 1000, count),
}


def several(rng: torch.Generator, count: int) -> list[Tensor]:
    return [draw(rng, count) for draw in DRAWS.values() for _ in range(2)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("values", [2**16, 700], ids=["few grains", "many grains"])
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(size: int, values: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "VALUES", values)
    whole = several(RowStream(CPU, 3, "a", first=0, count=BATCH), BATCH)
    parts = [several(RowStream(CPU, 3, "a", first=first, count=size), size) for first in range(0, BATCH, size)]
    for number, values_of_all in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), values_of_all)


def test_grains_that_are_whole_are_drawn_where_they_lie():
    values, filled = torch.empty(3, 2**15), []

    def fill(part: Tensor, _: torch.Generator) -> Tensor:
        filled.append(part.data_ptr())
        return part.fill_(len(filled))

    RowStream(CPU, 3, first=0, count=3).filled(values, fill)
    assert filled[0] == values.data_ptr()
    assert values.mean(dim=1).tolist() == [1, 1, 2]


def test_rows_draws_and_positions_differ():
    rng = RowStream(CPU, 3, "a", first=0, count=BATCH)
    first, second = normal(rng, BATCH, 64), normal(rng, BATCH, 64)
    other = normal(RowStream(CPU, 3, "b", first=0, count=BATCH), BATCH, 64)
    together = torch.cat([first, second, other])
    assert (torch.corrcoef(together) - torch.eye(3 * BATCH)).abs().max() < 0.6, "64 values each"
    assert abs(float(together.mean())) < 0.1
    assert 0.9 < float(together.std()) < 1.1


def test_a_stream_of_its_own_differs_between_micro_batches():
    one, two = (torch.rand(4, generator=RowStream(CPU, 3, first=first, count=4)) for first in (0, 4))
    assert not torch.equal(one, two)


def test_a_plain_generator_draws_as_ever():
    def plain() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    assert torch.equal(normal(plain(), 4, 3), torch.randn(4, 3, generator=plain()))
    assert torch.equal(uniform(plain(), 7), torch.rand(7, generator=plain()))
    assert torch.equal(integers(plain(), 9, 7), torch.randint(9, (7,), generator=plain()))
