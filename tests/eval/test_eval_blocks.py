"""Several blocks of seeds: a row of their means, spreads and values."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_place import COUNT, evaluate, place, rows_of, value

from eval.images.costs import Costs
from eval.measures.figure import Figure
from eval.report.blocks import pooled
from eval.rows import Bill, Origin, Row

__all__ = ["place"]


def test_blocks_of_seeds_give_mean_spread_and_every_value(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = ["--student", str(place / "student"), "--steps", "1", "--metrics", "fid,accuracy"]
    for block in range(3):
        assert evaluate(place, tmp_path / str(block), *student, "--seed", str(5 + COUNT * block)) == 0
    alone = [value(rows_of(tmp_path / str(block))[1], "fid") for block in range(3)]
    capsys.readouterr()
    teacher = ["--teacher", str(place / "real")]
    mean, spread = float(np.mean(alone)), float(np.std(alone, ddof=1))
    ledgers: list[int] = []
    joined = Costs.bill

    def bill(parts: list[Costs], batch_size: int) -> Bill:
        ledgers.append(sum(part.images for part in parts))
        return replace(joined(parts, batch_size), peak_memory_gib=ledgers[-1])

    monkeypatch.setattr(Costs, "bill", bill)
    bounds = ["--assert", f"fid > {mean - 1e-4 * mean}", "--assert", f"fid < {mean + 1e-4 * mean}"]
    assert evaluate(place, tmp_path / "three", *student, *teacher, "--seed", "5", "--seeds", "3", *bounds) == 0
    (_, files, row) = rows_of(tmp_path / "three")
    found = row["metrics"]["fid"]
    assert found["values"] == pytest.approx(alone, rel=1e-6)
    assert (found["value"], found["spread"]) == pytest.approx((mean, spread), rel=1e-6)
    assert found["low"] < mean < found["high"]
    assert (row["num"], row["nfe"], row["source"]["first_seed"]) == (COUNT, 1, 5)
    assert row["costs"]["peak_memory_gib"] == ledgers[-1]  # the last bill, which is of all blocks
    assert ledgers == [COUNT, 2 * COUNT, 3 * COUNT]
    assert row["costs"]["images_per_second"] == pytest.approx(1 / row["costs"]["seconds_per_image"])
    assert (files["metrics"]["fid"]["values"], files["metrics"]["fid"]["spread"]) == ([], None)
    assert json.loads((tmp_path / "three" / "metrics.json").read_text())["provenance"]["seeds"] == [5, 76]
    printed = capsys.readouterr().out
    assert f"{mean:.4g} sd {spread:.2g}" in printed
    for block, single in enumerate(alone):
        assert f"{single:.4g}" in next(
            line for line in printed.splitlines() if f"from seed {5 + COUNT * block}" in line
        )


def test_a_figure_that_one_block_lacks_is_not_measured() -> None:
    def block(**figures: Figure) -> Row:
        missing = {} if "kid" in figures else {"kid": "why"}
        return Row("s", "student", "s", Origin("s", "pipeline"), 9, figures, missing)

    row = pooled([block(fid=Figure(1, 0, 2), kid=Figure(3)), block(fid=Figure(2, 1, 5))])
    assert row.metrics == {"fid": Figure(1.5, 0.5, 3.5, spread=0.5**0.5, values=(1, 2))}
    assert row.not_measured == {"kid": "why"}
