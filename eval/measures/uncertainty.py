"""How far a Frechet distance is off: its bias at finite N, and its spread. Never by bootstrap.

Images that a bootstrap draws twice shrink the covariance and move the distance itself; leaving images out does not.
"""

import torch
from torch import Tensor

from .figure import Figure, NotMeasured
from .frechet import Moments, Target

GROUPS = 10
POINTS = 10
_STUDENT_T = 2.262  # 97.5 % quantile at GROUPS - 1 degrees of freedom


def jackknife(features: Tensor, target: Target, *, seed: int) -> tuple[float, float]:
    """95 % half width and standard error of the distance of features [N, d] to `target`, N >= 20.

    Delete-a-group jackknife (Quenouille 1956; Kott 2001) over 10 seeded random groups. It covers what another draw
    of samples would change; neither the bias at finite N nor the reference's own error.

    Raises:
        NotMeasured: too few images.
    """
    if len(features) < 2 * GROUPS:
        raise NotMeasured(f"an interval needs {2 * GROUPS} images")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    groups = [Moments.of(features[part]) for part in order.chunk(GROUPS)]
    leaving_out = torch.tensor([_distance(groups[:g] + groups[g + 1 :], target) for g in range(GROUPS)])
    error = float(((GROUPS - 1) * leaving_out.double().var(correction=0)).sqrt())
    return _STUDENT_T * error, error


def frechet_infinity(features: Tensor, target: Target, *, seed: int, points: int = POINTS) -> Figure:
    """The distance extrapolated to infinitely many samples (Chong and Forsyth 2020, arXiv 1911.07023, section 4).

    Least squares line through distances against 1 / N, for N evenly from a fifth of the images, but more than the
    feature has dimensions, to all of them; subsets are drawn without replacement. `details` hold R^2 and slope.

    Raises:
        NotMeasured: half the images are no more than the feature dimensions, where 1 / N is not the law.
    """
    count, dim = features.shape
    smallest = max(count // 5, min(count // 2, dim + 1))
    if smallest <= dim:
        raise NotMeasured(f"the law of 1 / N needs more than twice as many images as the {dim} feature dimensions")
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(smallest, count, points).round().long().tolist()
    subsets = [torch.randperm(count, generator=rng)[:size].to(features.device) for size in sizes]
    distances = [_distance([Moments.of(features[subset])], target) for subset in subsets]
    x, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    intercept = float(y.mean() - slope * x.mean())
    residual, total = (y - intercept - slope * x).square().sum(), (y - y.mean()).square().sum()
    r2 = float(1 - residual / total) if total > 0 else 1.0
    return Figure(intercept, details={"r2": r2, "slope": slope, "points": points, "smallest": smallest, "seed": seed})


def _distance(parts: list[Moments], target: Target) -> float:
    whole = Moments.zeros(target.statistics.dim, device=target.statistics.mean.device)
    for part in parts:
        whole.merge(part)
    return target.distance(whole.statistics(target.statistics.extractor or ""))
