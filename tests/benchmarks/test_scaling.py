"""The scaling benchmark: its arithmetic, and a run of one process against two."""

import json

import pytest

from benchmarks.scaling import efficiencies, main


def test_efficiency_is_against_the_fewest_cards():
    runs = [{"cards": cards, "images_per_second": rate} for cards, rate in ((4, 36.0), (2, 20.0))]
    assert efficiencies(runs) == {
        "4": {"times": pytest.approx(1.8), "efficiency": pytest.approx(0.9)},
        "2": {"times": 1.0, "efficiency": 1.0},
    }


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_are_measured_against_one(tmp_path, sharding):
    tiny = [
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--batch",
        "2",
        "--cycles",
        "1",
        "--warmup",
        "0",
    ]
    found = main([*tiny, "--fake-turns", "1", "--gan", "--sharding", sharding, "--out", str(tmp_path / "scaling.json")])
    assert json.loads((tmp_path / "scaling.json").read_text()) == found
    for run, cards in zip(found["runs"], (1, 2), strict=True):
        assert run["cards"] == cards
        assert run["images_per_second"] == pytest.approx(2 * cards * 2 / run["seconds"]["cycle"])
