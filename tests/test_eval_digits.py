import pytest
import torch

from eval.digits import class_balanced_labels, digits_figures, real_digits, real_halves

REAL = real_digits()


def test_the_real_digits_are_scaled_to_one() -> None:
    assert REAL.images.shape == (1797, 64)
    assert (REAL.images.min(), REAL.images.max()) == (0, 1)


def test_labels_are_balanced() -> None:
    assert class_balanced_labels(12).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert class_balanced_labels(1797).bincount().tolist() == [180] * 7 + [179] * 3


def test_real_digits_are_perfect_by_their_own_standard() -> None:
    figures = digits_figures(REAL.images, REAL.labels)
    assert figures.frechet == pytest.approx(0, abs=1e-9)
    assert figures.accuracy > 0.98
    assert figures.diversity == 1


def test_halves_of_the_real_digits_bound_what_a_model_can_reach() -> None:
    figures = real_halves(0)
    assert 0.02 < figures.frechet < 0.12
    assert figures.accuracy > 0.96
    assert figures.diversity == pytest.approx(1, abs=0.05)
    assert real_halves(0) == figures
    assert real_halves(1) != figures


def test_halved_contrast_has_a_closed_form() -> None:
    figures = digits_figures(REAL.images.float() / 2, REAL.labels)
    mean, cov = REAL.images.mean(0), REAL.images.T.cov()
    assert figures.frechet == pytest.approx(float((mean / 2).square().sum() + cov.trace() / 4), rel=1e-6)
    assert figures.diversity == pytest.approx(0.5)


def test_a_collapsed_generator_is_accurate_and_not_diverse() -> None:
    labels = class_balanced_labels(500)
    prototypes = torch.stack([REAL.images[REAL.labels == label].mean(0) for label in range(10)])
    figures = digits_figures(prototypes[labels], labels)
    assert figures.accuracy == 1
    assert figures.diversity == pytest.approx(0, abs=1e-6)
    assert figures.frechet > 10 * real_halves(0).frechet


def test_ignoring_the_asked_digit_shows_in_the_accuracy() -> None:
    shifted = digits_figures(REAL.images, (REAL.labels + 1) % 10)
    assert shifted.accuracy < 0.02
    chance = digits_figures(REAL.images, REAL.labels[torch.randperm(1797)])
    assert chance.accuracy == pytest.approx(0.1, abs=0.03)
    assert chance.diversity > 1.2


def test_noise_is_far_from_digits() -> None:
    figures = digits_figures(torch.rand(1000, 64), class_balanced_labels(1000))
    assert figures.frechet > 100 * real_halves(0).frechet


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (torch.rand(100, 8, 8), class_balanced_labels(100), r"\[N, 64\]"),
        (torch.rand(100, 64), class_balanced_labels(99), r"\[N, 64\]"),
        (torch.rand(100, 64) * 2 - 1, class_balanced_labels(100), r"lie in \[0, 1\]"),
        (torch.full((100, 64), float("nan")), class_balanced_labels(100), "finite"),
        (torch.rand(100, 64), torch.zeros(100, dtype=torch.long), "each at least twice"),
        (torch.rand(100, 64), torch.arange(100) % 11, "0 .. 9"),
    ],
)
def test_anything_but_labelled_digits_is_refused(images: torch.Tensor, labels: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        digits_figures(images, labels)
