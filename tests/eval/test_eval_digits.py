"""The figures of handwritten digits, and what an extractor that has no network makes of images."""

import pytest
import torch
from digits_side import PIXELS, digits_figures, side_of

from eval.digits.figures import METRICS, by_class
from eval.digits.images import RealDigits, digits_on, real_digits, real_halves
from eval.images.sources import eight_bit
from eval.measure import figures_of
from eval.measures.figure import NotMeasured
from fastgen.data.digits import to_canvas
from fastgen.errors import UserError

REAL = real_digits()


def in_turn(count: int) -> torch.Tensor:
    return torch.arange(count) % 10


def floor(seed: int) -> dict[str, float]:
    half, other = real_halves(seed)
    return digits_figures(half.digits.images, half.digits.labels, other)


def test_the_real_digits_are_scaled_to_one() -> None:
    assert REAL.images.shape == (1797, 64)
    assert (REAL.images.min(), REAL.images.max()) == (0, 1)


def test_real_digits_are_a_source_of_images_in_their_order() -> None:
    source = RealDigits()
    (batch,) = source.batches(range(100, 200))
    assert source.total == 1797
    assert batch.numbers == tuple(range(100, 200))
    assert torch.equal(batch.images.flatten(1).double(), REAL.images[100:200])
    assert torch.equal(batch.labels, REAL.labels[100:200])
    assert torch.equal(list(source.pictures(()))[7]().flatten().double(), REAL.images[7])


def test_halves_are_all_digits_once_and_of_every_class_as_many() -> None:
    halves = real_halves(3)
    assert sorted([*halves[0].places, *halves[1].places]) == list(range(1797))
    counts = [half.digits.labels.bincount() for half in halves]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert "seed 3" in halves[0].origin.path


def test_real_digits_are_perfect_by_their_own_standard() -> None:
    figures = digits_figures(REAL.images, REAL.labels)
    assert figures["frechet"] == pytest.approx(0, abs=1e-9)
    assert figures["accuracy"] > 0.98
    assert figures["diversity"] == 1


def test_halves_of_the_real_digits_bound_what_a_model_can_reach() -> None:
    figures = floor(0)
    assert 0.02 < figures["frechet"] < 0.12
    assert figures["accuracy"] > 0.96
    assert figures["diversity"] == pytest.approx(1, abs=0.05)
    assert floor(0) == figures
    assert floor(1) != figures


def test_halved_contrast_has_a_closed_form() -> None:
    figures = digits_figures(REAL.images / 2, REAL.labels)
    mean, cov = REAL.images.mean(0), REAL.images.T.cov()
    assert figures["frechet"] == pytest.approx(float((mean / 2).square().sum() + cov.trace() / 4), rel=1e-6)
    assert figures["diversity"] == pytest.approx(0.5)


def test_a_collapsed_generator_is_accurate_and_not_diverse() -> None:
    labels = in_turn(500)
    prototypes = torch.stack([REAL.images[REAL.labels == label].mean(0) for label in range(10)])
    figures = digits_figures(prototypes[labels], labels)
    assert figures["accuracy"] == 1
    assert figures["diversity"] == pytest.approx(0, abs=1e-6)
    assert figures["frechet"] > 10 * floor(0)["frechet"]


def test_ignoring_the_asked_digit_shows_in_the_accuracy() -> None:
    assert digits_figures(REAL.images, (REAL.labels + 1) % 10)["accuracy"] < 0.02
    chance = digits_figures(REAL.images, REAL.labels[torch.randperm(1797)])
    assert chance["accuracy"] == pytest.approx(0.1, abs=0.03)
    assert chance["diversity"] > 1.2


def test_noise_is_far_from_digits() -> None:
    assert digits_figures(torch.rand(1000, 64), in_turn(1000))["frechet"] > 100 * floor(0)["frechet"]


@pytest.mark.parametrize("labels", [torch.zeros(100, dtype=torch.long), torch.arange(100) % 11])
def test_other_labels_are_not_measured_with_the_reason(labels: torch.Tensor) -> None:
    figures, missing = figures_of(METRICS, side_of(torch.rand(100, 64), labels))
    assert list(figures) == ["frechet"]
    assert all("0 .. 9, each at least twice" in missing[name] for name in ("accuracy", "diversity"))


def test_classes_average_to_the_whole() -> None:
    labels = in_turn(1000)
    classes = [REAL.images[REAL.labels == label] for label in range(10)]
    digits = torch.stack([classes[label][i % 150] for i, label in enumerate(labels.tolist())])
    noisy = (digits + 0.2 * torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    whole, rows = digits_figures(noisy, labels), by_class(side_of(noisy, labels))
    assert [(row.label, row.name, row.num) for row in rows] == [(label, str(label), 100) for label in range(10)]
    assert sum(row.accuracy for row in rows) / 10 == pytest.approx(whole["accuracy"])
    assert min(row.diversity for row in rows) < whole["diversity"] < max(row.diversity for row in rows)


def test_the_reference_itself_has_no_table_of_classes() -> None:
    side = side_of(REAL.images, REAL.labels)
    with pytest.raises(NotMeasured):
        by_class(type(side)(**{**vars(side), "seen": side.real}))


def test_digits_are_read_from_their_canvas_and_from_files() -> None:
    digits = REAL.images[:50].float().reshape(-1, 1, 8, 8)
    canvases = to_canvas(digits) / 2 + 0.5
    torch.testing.assert_close(digits_on(canvases), digits, rtol=0, atol=1e-6)
    torch.testing.assert_close(PIXELS(digits_on(canvases)), digits.flatten(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(PIXELS(canvases), digits.flatten(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(PIXELS(eight_bit(digits)), digits.flatten(1), rtol=0, atol=0.51 / 255)
    with pytest.raises(UserError, match=r"images of 8 x 8 pixels.*not of 12 x 10"):
        PIXELS(torch.rand(2, 1, 10, 12))


def test_what_lies_beyond_black_and_white_counts_in_the_fit() -> None:
    canvases = 1.4 * (to_canvas(REAL.images[:50].float().reshape(-1, 1, 8, 8)) / 2 + 0.5) - 0.2
    assert (digits_on(canvases) - digits_on(canvases.clamp(0, 1))).abs().max() > 0.01
