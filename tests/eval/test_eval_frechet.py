from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from eval.measures import frechet, statistics_file
from eval.measures.frechet import Moments, Statistics, Target, require_same_features
from eval.measures.statistics_file import load_statistics, save_statistics
from fastgen.errors import UserError


def features(count: int, dim: int, *, seed: int, offset: float = 0.0) -> Tensor:
    """Correlated float64 features with eigenvalues over three decades."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64) * torch.logspace(0, -1.5, dim)
    return torch.randn(count, dim, generator=rng, dtype=torch.float64) @ mix + offset


def fitted(*batches: Tensor, extractor: str = "e") -> Statistics:
    moments = Moments.zeros(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments.statistics(extractor)


def classic_distance(a: Statistics, b: Statistics) -> float:
    """The formula as published, with a general matrix square root."""
    root = linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * np.trace(root).real)


def distance(a: Statistics, b: Statistics) -> float:
    """As rows are held against a reference."""
    return Target.of(a).distance(b)


def test_distance_agrees_with_a_matrix_square_root() -> None:
    a, b = fitted(features(500, 48, seed=1)), fitted(features(300, 48, seed=2, offset=0.1))
    assert distance(a, b) == pytest.approx(classic_distance(a, b), rel=1e-6)


def test_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    mean_a, mean_b, var_a, var_b = torch.rand(4, 32, dtype=torch.float64)
    a, b = Statistics(mean_a, var_a.diag(), 99, "e"), Statistics(mean_b, var_b.diag(), 99, "e")
    expected = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    assert distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_distance_does_not_depend_on_the_blocks_of_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = fitted(features(500, 48, seed=1)), fitted(features(300, 48, seed=2, offset=0.1))
    monkeypatch.setattr(frechet, "BLOCK", 7)
    assert distance(a, b) == pytest.approx(classic_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("few", "many"), [(20, 500), (20, 20), (20, 35)])
def test_distance_of_rank_deficient_covariances(few: int, many: int) -> None:
    x, y = features(few, 64, seed=3), features(many, 64, seed=4)
    a, b = fitted(x), fitted(y)
    # tr (S_a S_b)^(1/2) is the nuclear norm of the product of the centred data matrices.
    roots = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    nuclear = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    expected = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * nuclear)
    assert distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert distance(b, a) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("count", [10, 400])
def test_distance_to_itself_is_zero_and_order_does_not_matter(count: int) -> None:
    a, b = fitted(features(count, 32, seed=5)), fitted(features(300, 32, seed=6))
    assert distance(a, a) == pytest.approx(0, abs=1e-10 * float(a.cov.trace()))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-8)
    assert distance(a, b) > 0.1


def test_moments_do_not_depend_on_how_features_are_batched() -> None:
    x = features(501, 16, seed=7, offset=1e4)
    exact = np.cov((x - 1e4).numpy().T)
    for sizes in ([501], [1] * 501, [7] * 71 + [4], [500, 1]):
        cut = fitted(*x.split(sizes))
        assert cut.count == 501
        np.testing.assert_allclose(cut.cov.numpy(), exact, rtol=0, atol=1e-12 * 1e4 * exact.max())
        np.testing.assert_allclose(cut.mean.numpy(), x.numpy().mean(0), rtol=1e-14)


def test_batching_leaves_moments_equal_to_rounding() -> None:
    x = features(1000, 16, seed=8)
    whole, shuffled = fitted(x), fitted(*x[torch.randperm(1000)].split(33))
    np.testing.assert_allclose(shuffled.cov.numpy(), whole.cov.numpy(), rtol=0, atol=1e-12 * float(whole.cov.max()))


def test_merged_moments_are_those_of_all_features() -> None:
    x = features(300, 8, seed=9)
    first, second, empty = (Moments.zeros(8) for _ in range(3))
    first.update(x[:100])
    second.update(x[100:])
    empty.merge(second)
    first.merge(empty)
    first.merge(Moments.zeros(8))
    np.testing.assert_allclose(first.statistics("e").cov.numpy(), np.cov(x.numpy().T), rtol=1e-12, atol=1e-14)


def test_features_that_are_not_finite_are_refused() -> None:
    moments = Moments.zeros(4)
    moments.update(torch.rand(10, 4))
    with pytest.raises(UserError, match="images 10 to 12 hold NaN"):
        moments.update(torch.tensor([[0.0] * 4, [float("nan")] * 4, [0.0] * 4]))
    assert moments.count == 10


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        fitted(torch.rand(1, 4))


def test_other_feature_spaces_are_refused() -> None:
    a = fitted(torch.rand(10, 4), extractor="one")
    with pytest.raises(UserError, match=r"'one'.*'two'.*Recompute"):
        distance(a, fitted(torch.rand(10, 4), extractor="two"))
    with pytest.raises(UserError, match=r"4 feature dimensions.*with 5"):
        distance(a, fitted(torch.rand(10, 5), extractor="one"))
    require_same_features(a, extractor=None, dim=4)


def test_a_damaged_covariance_is_refused() -> None:
    bad = Statistics(torch.zeros(4).double(), torch.diag(torch.tensor([1.0, 1, 1, -0.1]).double()), 5, "e")
    with pytest.raises(UserError, match=r"eigenvalue -0.1.*damaged"):
        Target.of(bad)


def test_statistics_survive_the_disk_bit_for_bit(tmp_path: Path) -> None:
    saved = fitted(features(50, 8, seed=10), extractor="ResNet abc, 96 px")
    save_statistics(tmp_path / "deep" / "s.npz", saved)
    read = load_statistics(tmp_path / "deep" / "s.npz")
    assert torch.equal(read.mean, saved.mean)
    assert torch.equal(read.cov, saved.cov)
    assert (read.count, read.extractor) == (50, "ResNet abc, 96 px")
    save_statistics(tmp_path / "deep" / "s.npz", fitted(features(60, 8, seed=11)))
    assert load_statistics(tmp_path / "deep" / "s.npz").count == 60
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s.npz"]


def test_foreign_statistics_have_no_count_and_no_extractor(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    read = load_statistics(tmp_path / "s.npz")
    assert (read.count, read.extractor, read.cov.dtype) == (None, None, torch.float64)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.npz"
    save_statistics(path, fitted(torch.rand(10, 4)))
    old = path.read_bytes()

    def half(file, **_arrays: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(statistics_file.np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        save_statistics(path, fitted(torch.rand(10, 4)))
    assert path.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"mu": np.zeros(3)}, "`mu` and `sigma` are needed"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\)"),
        ({"mu": np.zeros((3, 3)), "sigma": np.eye(3)}, r"mu \(3, 3\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "finite"),
        ({"mu": np.array([{}, {}, {}], dtype=object), "sigma": np.eye(3)}, "cannot be read"),
        ({"mu": np.array(["a", "b", "c"]), "sigma": np.eye(3)}, "could not convert"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(tmp_path: Path, arrays: dict, problem: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=problem):
        load_statistics(tmp_path / "s.npz")


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_statistics(path, fitted(torch.rand(50, 20)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"s\.npz cannot be read"):
            load_statistics(path)
    with pytest.raises(UserError, match="does not exist"):
        load_statistics(tmp_path / "none.npz")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_distance() -> None:
    x, b = features(400, 64, seed=11), fitted(features(300, 64, seed=12))
    moments = Moments.zeros(64, device="cuda")
    moments.update(x.cuda())
    assert moments.scatter.is_cuda
    assert distance(moments.statistics("e"), b) == pytest.approx(distance(fitted(x), b), rel=1e-9)
