import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanfid.fid import kernel_distance
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from eval.collect import Seen
from eval.comparison import Comparison
from eval.measure import figures_of
from eval.measures.classes import accuracy, inception_score, per_class
from eval.measures.figure import Figure, NotMeasured
from eval.measures.frechet import Moments, Statistics, Target
from eval.measures.kernels import cmmd, kernel_inception_distance
from eval.measures.manifold import nearest, prdc
from eval.measures.uncertainty import frechet_infinity, jackknife
from eval.measures.variety import mean_pairwise_distance, pairwise_by_condition, vendi_score
from eval.metrics import METRICS, catalogue, chosen
from eval.report.assertions import Assertion
from eval.rows import Origin, Row
from fastgen.errors import UserError


def normal(count: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def unit_target(dim: int) -> Target:
    return Target.of(Statistics(torch.zeros(dim).double(), torch.eye(dim).double(), None, None))


# --- KID


def test_kid_equals_both_libraries_when_subsets_are_whole_sets() -> None:
    a, b = normal(60, 16, seed=0), normal(60, 16, seed=1, shift=0.3)
    ours = kernel_inception_distance(a, b, seed=0, subsets=2).value
    library = KernelInceptionDistance(feature=nn.Identity(), subsets=2, subset_size=60)
    library.update(a, real=True)
    library.update(b, real=False)
    assert ours == pytest.approx(float(library.compute()[0]), rel=1e-3)
    assert ours == pytest.approx(kernel_distance(a.numpy(), b.numpy(), num_subsets=2), rel=1e-3)


def test_kid_of_one_distribution_is_zero_on_average_at_any_size() -> None:
    values = [
        kernel_inception_distance(normal(20, 8, seed=i), normal(20, 8, seed=1000 + i), seed=0, subsets=1).value
        for i in range(300)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error


def test_kid_subsets_follow_the_seed() -> None:
    a, b = normal(50, 4, seed=0), normal(50, 4, seed=1)
    first, again, other = (kernel_inception_distance(a, b, seed=s, subsets=3, size=10).value for s in (0, 0, 1))
    assert first == again != other


# --- CMMD


def test_cmmd_equals_the_kernel_means_of_sklearn() -> None:
    a, b = F.normalize(normal(40, 6, seed=0)), F.normalize(normal(30, 6, seed=1, shift=1.0))
    xx, yy, xy = (rbf_kernel(p, q, gamma=1 / 200).mean() for p, q in ((a, a), (b, b), (a, b)))
    assert cmmd(3 * a, b).value == pytest.approx(1000 * (xx + yy - 2 * xy), rel=1e-3)


def test_cmmd_of_opposite_points_has_a_closed_form() -> None:
    a = torch.tensor([[1.0, 0.0]])
    assert cmmd(a, -a).value == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)), rel=1e-9)


# --- precision, recall, density, coverage


def prdc_by_sklearn(sample: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    def reach(rows: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1).fit(rows).kneighbors(rows)[0][:, -1]

    distance = np.linalg.norm(sample[:, None] - real[None], axis=2)
    inside = distance <= reach(real)[None]
    return {
        "precision": inside.any(1).mean(),
        "recall": (distance <= reach(sample)[:, None]).any(0).mean(),
        "density": inside.sum(1).mean() / k,
        "coverage": (distance.min(0) <= reach(real)).mean(),
    }


def test_precision_recall_density_and_coverage_agree_with_sklearn() -> None:
    sample, real = normal(70, 5, seed=0, shift=0.4), normal(90, 5, seed=1)
    ours = prdc(sample, real, seed=0, k=3)
    for name, value in prdc_by_sklearn(sample.numpy(), real.numpy(), 3).items():
        assert ours[name].value == pytest.approx(value, rel=1e-6)


def test_a_lost_mode_costs_recall_and_an_invented_one_precision() -> None:
    real = torch.cat([normal(300, 4, seed=0), normal(300, 4, seed=1, shift=50)])
    one_mode = normal(600, 4, seed=2)
    invented = torch.cat([normal(300, 4, seed=3), normal(300, 4, seed=4, shift=-50)])
    lost = prdc(one_mode, real, seed=0)
    assert lost["precision"].value > 0.9
    assert lost["recall"].value == pytest.approx(0.5, abs=0.05)
    assert lost["coverage"].value < 0.55
    assert prdc(invented, real, seed=0)["precision"].value == pytest.approx(0.5, abs=0.05)
    assert lost["density"].value == pytest.approx(1, abs=0.3)


def test_balls_need_more_images_than_neighbours() -> None:
    with pytest.raises(NotMeasured, match="k = 5"):
        prdc(normal(5, 2, seed=0), normal(9, 2, seed=1), seed=0)


def test_nearest_neighbours_come_in_order_with_their_distance() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    found = nearest(torch.tensor([[0.0, 0.0]]), rows, 9)
    assert found.index.tolist() == [[0, 2, 1]]
    assert found.distance.tolist() == [[0, 1, 5]]


# --- variety


def test_pairwise_distance_is_taken_within_each_condition() -> None:
    features = torch.tensor([[0.0], [2.0], [100.0], [104.0], [7.0]])
    conditions = torch.tensor([0, 0, 1, 1, 2])
    assert pairwise_by_condition(features, conditions) == {0: 2.0, 1: 4.0}
    assert mean_pairwise_distance(features, conditions).value == 3
    with pytest.raises(NotMeasured, match="more images than prompts"):
        mean_pairwise_distance(features, torch.arange(5))


@pytest.mark.parametrize(("count", "dim"), [(6, 10), (40, 10)])
def test_vendi_counts_orthogonal_images(count: int, dim: int) -> None:
    different = torch.eye(dim)[torch.arange(count) % dim]
    assert vendi_score(5 * different).value == pytest.approx(min(count, dim), rel=1e-9)
    assert vendi_score(torch.ones(count, dim)).value == pytest.approx(1, rel=1e-6)


def test_vendi_is_the_exponential_of_the_kernel_entropy() -> None:
    features = normal(30, 8, seed=0)
    unit = F.normalize(features).numpy()
    shares = np.linalg.eigvalsh(unit @ unit.T / 30).clip(1e-30)
    assert vendi_score(features).value == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


# --- classes


def test_inception_score_equals_torchmetrics_and_its_limits() -> None:
    logits = 3 * normal(50, 7, seed=0).float()
    library = InceptionScore(feature=nn.Identity(), splits=1)
    library.update(logits)
    ours = inception_score(logits, seed=0, splits=1).value
    assert ours == pytest.approx(float(library.compute()[0]), rel=1e-3)
    assert inception_score(100 * torch.eye(5).repeat(20, 1), seed=0, splits=1).value == pytest.approx(5, rel=1e-6)
    assert inception_score(torch.zeros(50, 7), seed=0).value == pytest.approx(1, rel=1e-6)


def test_accuracy_counts_hits_and_needs_the_same_classes() -> None:
    logits, labels = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 0])
    figure = accuracy(logits, labels, "abc")
    assert figure.value == 0.75
    assert figure.low < 0.75 < figure.high <= 1
    with pytest.raises(NotMeasured, match=r"3 values from 0 to 2.*4 classes"):
        accuracy(logits, labels, "abcd")


def test_the_table_by_class_names_and_counts() -> None:
    logits, labels = torch.eye(2)[[0, 1, 1, 1]], torch.tensor([0, 0, 1, 1])
    features = torch.tensor([[0.0], [3.0], [5.0], [5.0]])
    first, second = per_class(labels, features, logits, ["cat", "dog"])
    assert (first.name, first.num, first.accuracy, first.diversity) == ("cat", 2, 0.5, 3)
    assert (second.name, second.accuracy, second.diversity) == ("dog", 1, 0)
    assert [row.accuracy for row in per_class(labels, None, logits, ["one"])] == [None, None]


# --- uncertainty


def test_the_extrapolated_distance_of_the_true_distribution_is_near_zero() -> None:
    features, target = normal(3000, 40, seed=0), unit_target(40)
    plain = target.distance(Moments.of(features).statistics(""))
    figure = frechet_infinity(features, target, seed=0)
    assert plain > 0.1
    assert abs(figure.value) < 0.1 * plain
    assert figure.details["r2"] > 0.99
    assert figure.details["points"] >= 8
    with pytest.raises(NotMeasured, match="feature dimensions"):
        frechet_infinity(features[:80], target, seed=0)


def test_the_jackknife_error_is_the_spread_of_independent_draws() -> None:
    target = unit_target(6)
    draws = [normal(400, 6, seed=seed, shift=0.2) for seed in range(60)]
    spread = np.std([target.distance(Moments.of(draw).statistics("")) for draw in draws])
    errors = [jackknife(draw, target, seed=0)[1] for draw in draws]
    assert np.mean(errors) == pytest.approx(spread, rel=0.3)
    half, error = jackknife(draws[0], target, seed=0)
    assert half == pytest.approx(2.262 * error)
    with pytest.raises(NotMeasured, match="20 images"):
        jackknife(draws[0][:19], target, seed=0)


# --- the table, and what is said of it


def test_metrics_are_chosen_by_their_name_or_that_of_a_figure() -> None:
    assert [metric.name for metric in chosen(("recall", "fid"), clip=False)] == ["fid", "prdc"]
    default = [metric.name for metric in chosen(None, clip=False)]
    assert "kid" in default
    assert not {"fid_infinity", "clip_score", "cmmd"} & set(default)
    assert "clip_score" in [metric.name for metric in chosen(None, clip=True)]
    row = Row("r", "student", "r", Origin("r", "images"), 2, {"reward_pick": Figure(1), "fid": Figure(2)}, {})
    assert [about.label for about in catalogue([row]).values()] == ["FID", "pick"]
    assert len({name for metric in METRICS for name in metric.figures}) == sum(len(m.figures) for m in METRICS)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("fid[4] < 5", 4.9, True),
        ("fid[4] < 5", 5.0, False),
        (" fid[4]<=5 ", 5.0, True),
        ("recall > .5", 0.4, False),
        ("nyquist_peak[1] >= -1e-1", -0.1, True),
        ("fid[4] < 5", None, False),
    ],
)
def test_assertions_compare_a_measured_value(text: str, value: float | None, holds: bool) -> None:
    assert Assertion.parse(text).holds(value) is holds


def test_an_assertion_speaks_of_its_step_count() -> None:
    assert [Assertion.parse("fid[4] < 5").applies(steps) for steps in (4, 1, None)] == [True, False, False]
    assert Assertion.parse("fid < 5").applies(1)


@pytest.mark.parametrize("text", ["", "fid", "fid[x] < 5", "fid == 5", "fid < five", "fid < 5; import os", "5 > fid"])
def test_other_assertions_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Assertion.parse(text)


# --- what cannot be measured


def side_of(teacher: dict[str, Figure], **columns: torch.Tensor) -> Comparison:
    """Two images for each of two prompts, beside a teacher's figures."""
    seen = Seen(4, None, None, columns, frozenset({(8, 8)}), {}, ())
    target = unit_target(1)
    return Comparison(seen, target.statistics, target, seen, teacher, (), torch.device("cpu"), 0)


def test_a_ratio_to_a_teacher_whose_images_are_alike_is_not_measured_with_its_reason() -> None:
    """The student's own figure is kept."""
    features, conditions = torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1])
    for metric, column in (("diversity", "features"), ("lpips", "lpips")):
        side = side_of({metric: Figure(0.0)}, conditions=conditions, **{column: features})
        figures, missing = figures_of(chosen((metric,), clip=False, lpips=True), side)
        assert list(figures) == [metric]
        assert figures[metric].value > 0
        assert missing.keys() == {f"{metric}_ratio"}
        assert "teacher's own is 0" in missing[f"{metric}_ratio"]


def test_what_is_no_finite_number_is_not_measured_and_costs_no_other_figure() -> None:
    """One image has no variance."""
    columns = {"colour": torch.tensor([[0.5, 0.2]]), "features": torch.eye(4), "conditions": torch.tensor([0, 0, 1, 1])}
    figures, missing = figures_of(chosen(("colour", "diversity"), clip=False), side_of({}, **columns))
    assert list(figures) == ["diversity"]
    assert missing.keys() == {"saturation_ratio", "contrast_ratio"}
    assert "not a finite number" in missing["contrast_ratio"]
