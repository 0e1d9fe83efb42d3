"""Parts of sentences that errors share."""

import pytest

from fastgen.errors import first_few


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "x0"), (2, "x0, x1"), (3, "x0, x1 and 1 more"), (9, "x0, x1 and 7 more")]
)
def test_the_first_few_items_are_named_and_the_others_counted(count, expected):
    assert first_few([f"x{number}" for number in range(count)], 2) == expected
