r"""Exact denoisers of Gaussians and Gaussian mixtures: the ground truth that objectives are checked against.

With S_k = Q_k diag(l_k) Q_k^T, the noised component is N(alpha mu_k, V_k), V_k = alpha^2 S_k + sigma^2 I, and

    E[x0 | x_t] = sum_k gamma_k(x_t) [mu_k + alpha S_k V_k^-1 (x_t - alpha mu_k)]

with gamma the posterior of the component. Everything is batched, differentiable in x_t and holds on every process.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..models.conditioning import Conditioning
from ..models.scalars import refuse_undeclared
from ..process import Prediction, Process, Time


class Mixture:
    """sum_k w_k N(mu_k, S_k) in d dimensions; a single component is a Gaussian.

    Args:
        means: [K, d].
        covariances: [K, d, d].
        weights: [K], summing to one; even by default.
        labels: class of each component [K]; the distribution given class c is the mixture of its components.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor,
        *,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.means = means.double()
        self.covariances = covariances.double()
        count = len(means)
        self.weights = torch.full((count,), 1 / count).double() if weights is None else weights.double()
        self.labels = torch.zeros(count, dtype=torch.long) if labels is None else labels

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [K, d] and eigenvectors [K, d, d] of the covariances."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values, vectors

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    def sample(self, count: int, rng: torch.Generator, *, labels: Tensor | None = None) -> Tensor:
        """[count, d], float64; given classes [count] if asked."""
        weights = self.weights.expand(count, -1)
        if labels is not None:
            weights = weights * (self.labels == labels[:, None])
        component = torch.multinomial(weights, 1, generator=rng)[:, 0]
        values, vectors = self.eigen
        z = torch.randn(count, self.means.shape[1], generator=rng, dtype=torch.float64)
        spread = torch.einsum("nij,nj->ni", vectors[component], values[component].clamp(min=0).sqrt() * z)
        return self.means[component] + spread

    def cond(self, labels: Tensor) -> Conditioning:
        """Conditioning on classes [B]; the null twin, label -1, is the whole mixture."""
        null = Conditioning(len(labels), {"class_labels": torch.full_like(labels, -1)})
        return Conditioning(len(labels), {"class_labels": labels}, null=null)

    def uncond(self, count: int) -> Conditioning:
        return Conditioning(count, {"class_labels": torch.full((count,), -1)})


class ClosedForm(nn.Module, ABC):
    """A denoiser by a formula of x_t [B, d]: it is told no scalars, and has no layers to look at."""

    scalars: tuple[str, ...] = ()

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    @abstractmethod
    def clean(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        """The predicted clean sample [B, d]."""

    def forward(
        self, x_t: Tensor, t: Time, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        refuse_undeclared(self.scalars, scalars or {})
        return Prediction.of_x0(self.process, x_t, t, self.clean(x_t, t, cond).to(x_t.dtype))

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return null.lerp(cond, w)

    def tap(self, x_t: Tensor, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise ValueError(f"{type(self).__name__} has no layers: use ExactRatio, or a discriminator on a learned score")


class ExactDenoiser(ClosedForm):
    """The optimal denoiser of a mixture. x_t is [B, d]; labels of -1 mean the whole mixture."""

    def __init__(self, process: Process, data: Mixture) -> None:
        super().__init__(process)
        self.data = data

    def clean(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        alpha = self.process.alpha(t)[:, None, None]
        values, vectors = self.data.eigen
        y, variance = self._whitened(x_t.double(), t)
        shrunk = torch.einsum("kij,bkj->bki", vectors, alpha * values * y / variance)
        posterior = self._joint(y, variance, cond).softmax(dim=1)[..., None]
        return (posterior * (self.data.means + shrunk)).sum(dim=1)

    def log_prob(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        """log p_t(x_t) [B], up to no constant."""
        y, variance = self._whitened(x_t.double(), t)
        return self._joint(y, variance, cond).logsumexp(dim=1)

    def flow_map(self, x_t: Tensor, t: Time, s: Time, cond: Conditioning, *, steps: int = 200) -> Tensor:
        """Where the probability flow carries x_t from time t to time s.

        Closed form for a Gaussian, `alpha_s mu + V_s^1/2 V_t^-1/2 (x_t - alpha_t mu)`; for a mixture Heun's
        method in even steps of process time (second order; 200 steps give about 1e-4, on EDM 5e-4).
        """
        if len(self.data.means) > 1:
            return self._integrate(x_t, t, s, cond, steps)
        vectors = self.data.eigen[1]
        y, variance = self._whitened(x_t.double(), t)
        target = self._variance(s)
        moved = torch.einsum("kij,bkj->bki", vectors, y * (target / variance).sqrt())[:, 0]
        return (self.process.alpha(s)[:, None] * self.data.means[0] + moved).to(x_t.dtype)

    def _integrate(self, x: Tensor, t: Time, s: Time, cond: Conditioning, steps: int) -> Tensor:
        for i in range(steps):
            a, b = (t + (s - t) * i / steps), (t + (s - t) * (i + 1) / steps)
            here = self(x, a, cond)
            mean = here.lerp(self(here.at(b), b, cond), 0.5)
            x = x + mean.at(b) - mean.at(a)
        return x

    def _variance(self, t: Time) -> Tensor:
        """Eigenvalues of V_k at each time, [B, K, d]."""
        alpha, sigma = self.process.alpha(t)[:, None, None], self.process.sigma(t)[:, None, None]
        return alpha**2 * self.data.eigen[0] + sigma**2

    def _whitened(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """x_t - alpha mu_k in the eigenbasis of S_k, and the variances there, both [B, K, d]."""
        offset = x_t[:, None] - self.process.alpha(t)[:, None, None] * self.data.means
        return torch.einsum("kij,bki->bkj", self.data.eigen[1], offset), self._variance(t)

    def _joint(self, y: Tensor, variance: Tensor, cond: Conditioning) -> Tensor:
        """log of weight times density per component [B, K], the weights those given the class."""
        labels: Tensor = cond.batched["class_labels"]
        allowed = (labels[:, None] == self.data.labels) | (labels[:, None] < 0)
        weights = self.data.weights * allowed
        density = -0.5 * (y**2 / variance + (2 * torch.pi * variance).log()).sum(dim=-1)
        return (weights / weights.sum(dim=1, keepdim=True)).log() + density


class ExactRatio(nn.Module):
    """The optimal logistic discriminator between two exact denoisers: log p_real - log p_fake."""

    def __init__(self, real: ExactDenoiser, fake: ExactDenoiser) -> None:
        super().__init__()
        self.real, self.fake = real, fake

    def forward(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        return self.ratio(x_t, t, cond)[:, None]

    def ratio(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        return self.real.log_prob(x_t, t, cond) - self.fake.log_prob(x_t, t, cond)


class AffineGenerator(ClosedForm):
    """x0 = mean + factor z with z the unit noise that x_t was made from: its output law N(mean, factor factor^T)."""

    def __init__(self, process: Process, mean: Tensor, factor: Tensor) -> None:
        super().__init__(process)
        self.mean = nn.Parameter(mean.double())
        self.factor = nn.Parameter(factor.double())

    def clean(self, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        z = x_t / self.process.prior(torch.ones_like(x_t), t)
        return self.mean + z.double() @ self.factor.T

    def law(self) -> Mixture:
        """The distribution of its samples, detached."""
        factor = self.factor.detach()
        return Mixture(self.mean.detach()[None], (factor @ factor.T)[None])
