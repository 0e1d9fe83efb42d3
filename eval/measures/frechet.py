"""Frechet distance between Gaussian fits of two feature sets (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

Moments are float64 and merged with the update of Chan, Golub and LeVeque (1979), so they do not depend on how
features were cut into batches. The trace term needs no matrix square root: with S1 = R R^T,
tr (S1 S2)^(1/2) is the sum of the square roots of the eigenvalues of the symmetric matrix R^T S2 R.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgen.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fit of features.

    Attributes:
        mean: float64 [d].
        cov: float64 [d, d], divided by count - 1.
        count: images behind the fit; None when a file of another tool does not say.
        extractor: identity of the feature extractor; None when a file of another tool does not say.
    """

    mean: Tensor
    cov: Tensor
    count: int | None
    extractor: str | None

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    def to(self, device: torch.device | str) -> "Statistics":
        return replace(self, mean=self.mean.to(device), cov=self.cov.to(device))


@dataclass
class Moments:
    """Running mean [d] and centred scatter [d, d] of features, in float64 on the features' device."""

    mean: Tensor
    scatter: Tensor
    count: int = 0

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features [N, d]."""
        moments = cls.zeros(features.shape[1], device=features.device)
        for part in features.split(8192):
            moments.update(part)
        return moments

    @classmethod
    def zeros(cls, dim: int, *, device: torch.device | str = "cpu") -> "Moments":
        zeros = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        return cls(mean=zeros[0].clone(), scatter=zeros)

    def update(self, features: Tensor) -> None:
        """Adds a batch of features [B, d].

        Raises:
            UserError: a feature is not finite.
        """
        if not bool(torch.isfinite(features).all()):
            raise UserError(
                f"features of images {self.count} to {self.count + len(features) - 1} hold NaN or infinity; no "
                "distance can be computed from them. Look at those samples: a model that overflows in half "
                "precision usually needs --dtype float32."
            )
        features = features.to(self.mean)
        mean = features.mean(0)
        centred = features - mean
        self.merge(Moments(mean, centred.T @ centred, len(features)))

    def merge(self, other: "Moments") -> None:
        """Adds the images of `other`, for example those of another process."""
        total = self.count + other.count
        if other.count == 0:
            return
        delta = other.mean.to(self.mean) - self.mean
        self.mean = self.mean + delta * (other.count / total)
        between = torch.outer(delta, delta) * (self.count * other.count / total)
        self.scatter = self.scatter + other.scatter.to(self.scatter) + between
        self.count = total

    def to(self, device: torch.device | str) -> "Moments":
        return Moments(self.mean.to(device), self.scatter.to(device), self.count)

    def statistics(self, extractor: str) -> Statistics:
        """The Gaussian fit so far.

        Raises:
            UserError: fewer than two images, which have no covariance.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, but there are {self.count}; give more images")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count, extractor)


@dataclass(frozen=True, eq=False)
class Target:
    """Statistics with the root of their covariance, for many distances from the same ones."""

    statistics: Statistics
    root: "Root"

    @classmethod
    def of(cls, statistics: Statistics, *, device: torch.device | str | None = None) -> "Target":
        """Raises UserError for a covariance with negative eigenvalues."""
        home = statistics.to(statistics.mean.device if device is None else device)
        return cls(home, _square_root(home.cov))

    def distance(self, other: Statistics) -> float:
        """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) to `other`, on the device of this side.

        Works for rank-deficient covariances; negative eigenvalues that come from rounding count as zero.

        Raises:
            UserError: the statistics come from different extractors or dimensions.
        """
        mine = self.statistics
        require_same_features(mine, extractor=other.extractor, dim=other.dim)
        other = other.to(mine.mean.device)
        trace_root = torch.linalg.eigvalsh(self.root.around(other.cov)).clamp(min=0).sqrt().sum()
        shift = (mine.mean - other.mean).square().sum()
        return max(0.0, float(shift + mine.cov.trace() + other.cov.trace() - 2 * trace_root))


def require_same_features(statistics: Statistics, *, extractor: str | None, dim: int) -> None:
    """Refuses statistics of another feature space than that of `extractor` (None: unknown) and `dim`.

    Raises:
        UserError: known extractor identities differ, or dimensions do.
    """
    remedy = "Recompute the reference from its images with this extractor."
    if statistics.extractor and extractor and statistics.extractor != extractor:
        raise UserError(
            f"statistics of the extractor '{statistics.extractor}' cannot be compared with those of '{extractor}': "
            f"weights, preprocessing and feature must agree. {remedy}"
        )
    if statistics.dim != dim:
        raise UserError(
            f"statistics of {statistics.dim} feature dimensions cannot be compared with {dim}: they come from "
            f"different extractors. {remedy}"
        )


@dataclass(frozen=True, eq=False)
class Root:
    """R with R R^T = S.

    Attributes:
        matrix: R [d, r]; below full rank r < d.
        triangular: whether it is zero above its diagonal.
    """

    matrix: Tensor
    triangular: bool

    def around(self, cov: Tensor) -> Tensor:
        """R^T cov R [r, r], of which only the lower triangle counts."""
        root = self.matrix
        if not self.triangular:
            return root.T @ cov @ root
        product = torch.zeros_like(cov)
        for start in range(0, len(cov), BLOCK):
            columns = slice(start, start + BLOCK)
            product[start:, columns] = root[start:, start:].T @ (cov[start:, start:] @ root[start:, columns])
        return product


BLOCK = 256
"""Columns of a triangular root that are multiplied at once; what lies above them is zero and left out."""


def _square_root(cov: Tensor) -> Root:
    """The Cholesky factor, or for a covariance of numerical rank r < d its scaled eigenvectors."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    pivots = factor.diagonal().square()
    if not int(failed) and float(pivots.min()) > torch.finfo(cov.dtype).eps * len(cov) * float(pivots.max()):
        return Root(factor, triangular=True)
    eigenvalues, vectors = torch.linalg.eigh(cov)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest < -1e-6 * largest or largest < 0:
        raise UserError(
            f"A covariance has the eigenvalue {smallest:.3g} beside a largest one of {largest:.3g}; none may be "
            "negative, so these statistics are damaged. Recompute them from the images."
        )
    kept = eigenvalues > torch.finfo(cov.dtype).eps * len(cov) * largest
    return Root(vectors[:, kept] * eigenvalues[kept].sqrt(), triangular=False)
