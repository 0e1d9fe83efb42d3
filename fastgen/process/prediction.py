r"""A network's belief about x_t, whatever its parameterisation.

Every parameterisation is a *row* (p, q): `output = p x0 + q eps`. Together with `x_t = alpha x0 + sigma eps` it is
a 2 x 2 system, so one solve serves all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .process import Process, pad_like
from .types import Latent, Time


@dataclass(frozen=True)
class Coefficients:
    """`output = x0 * p + eps * q`, both [B].

    Args:
        silent: whether the output may say nothing of the noise, q = 0, where sigma = 0.
    """

    p: Tensor
    q: Tensor
    silent: bool = True


Row = Callable[[Process, Tensor], Coefficients]


def x0_row(process: Process, t: Time) -> Coefficients:
    """The network predicts the clean sample."""
    return Coefficients(torch.ones_like(t), torch.zeros_like(t))


def eps_row(process: Process, t: Time) -> Coefficients:
    """The network predicts the noise (Ho et al. 2020, arXiv:2006.11239)."""
    return Coefficients(torch.zeros_like(t), torch.ones_like(t), silent=False)


def v_row(process: Process, t: Time) -> Coefficients:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512)."""
    return Coefficients(-process.sigma(t), process.alpha(t), silent=False)


def flow_row(process: Process, t: Time) -> Coefficients:
    """dx_t / d clock; eps - x0 on the flow process."""
    return Coefficients(process.d_alpha(t), process.d_sigma(t), silent=False)


def difference_row(process: Process, t: Time) -> Coefficients:
    """eps - x0: the flow's velocity, on any process."""
    return Coefficients(-torch.ones_like(t), torch.ones_like(t), silent=False)


def edm_row(process: Process, t: Time, sigma_data: float = 0.5, *, sign: float = 1.0) -> Coefficients:
    """EDM's F, from D = c_skip x + c_out F (Karras et al. 2022, table 1), written for any alpha; `sign` is F's."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    norm = sign * torch.hypot(sigma, sigma_data * alpha)
    return Coefficients(sigma / (sigma_data * norm), -sigma_data * alpha / norm, silent=False)


def consistency_row(process: Process, t: Time, sigma_data: float = 0.5, *, sigma_min: float = 0.002) -> Coefficients:
    """F of a consistency model, D = x at sigma_min (Song et al. 2023, arXiv:2303.01469, appendix C)."""
    sigma = process.sigma(t) / process.alpha(t)
    skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    out = (sigma - sigma_min) * sigma_data / torch.hypot(sigma, torch.full_like(sigma, sigma_data))
    return Coefficients((1 - skip) / out, -skip * sigma / out)


ROWS: dict[str, Row] = {
    "x0": x0_row,
    "eps": eps_row,
    "v": v_row,
    "flow": flow_row,
    "difference": difference_row,
    "edm": edm_row,
    "consistency": consistency_row,
}


@dataclass(frozen=True)
class Prediction:
    """What a denoiser believes of x_t at time t: the clean sample and the noise in it, [B, ...] each."""

    process: Process
    t: Time
    x0: Latent
    eps: Latent

    @classmethod
    def solve(cls, process: Process, x_t: Latent, t: Time, output: Latent, *, row: Row) -> "Prediction":
        """x0 and eps from a network output; solved in float64, returned in the dtype of x_t.

        A row that says nothing of x0 at some t (eps at alpha = 0) gives non-finite values there, never a clamp.
        At sigma = 0 an x0 network leaves the noise open: its mean, zero, is returned.
        """
        coefficients = row(process, t)
        p, q = pad_like(coefficients.p, x_t), pad_like(coefficients.q, x_t)
        alpha, sigma = pad_like(process.alpha(t), x_t), pad_like(process.sigma(t), x_t)
        determinant = alpha * q - sigma * p
        if not coefficients.silent:
            x0, eps = (q * x_t - sigma * output) / determinant, (alpha * output - p * x_t) / determinant
            return cls(process, t, x0.to(x_t.dtype), eps.to(x_t.dtype))
        silent = (determinant == 0) & (sigma == 0)
        determinant = torch.where(silent, 1.0, determinant)
        x0 = torch.where(silent, output / torch.where(silent, p, 1.0), (q * x_t - sigma * output) / determinant)
        eps = torch.where(silent, 0.0, (alpha * output - p * x_t) / determinant)
        return cls(process, t, x0.to(x_t.dtype), eps.to(x_t.dtype))

    @classmethod
    def of_x0(cls, process: Process, x_t: Latent, t: Time, x0: Latent) -> "Prediction":
        """The prediction whose clean sample is `x0`."""
        return cls.solve(process, x_t, t, x0, row=x0_row)

    def output(self, row: Row) -> Latent:
        """What a network of that parameterisation would have said."""
        coefficients = row(self.process, self.t)
        p, q = pad_like(coefficients.p, self.x0), pad_like(coefficients.q, self.x0)
        return (p * self.x0 + q * self.eps).to(self.x0.dtype)

    def at(self, s: Time) -> Latent:
        """The sample at time s under the same x0 and eps.

        At once the DDIM step (Song et al. 2020, arXiv:2010.02502, eq. 12 with eta = 0), the Euler step of a flow,
        the output of a consistency model (s = 0) and the jump of a two-time model.
        """
        alpha, sigma = pad_like(self.process.alpha(s), self.x0), pad_like(self.process.sigma(s), self.x0)
        return (alpha * self.x0 + sigma * self.eps).to(self.x0.dtype)

    @property
    def velocity(self) -> Latent:
        """dx_t / d clock along the probability flow."""
        return self.output(flow_row)

    @property
    def score(self) -> Latent:
        """grad log p_t(x_t) = -eps / sigma."""
        return (-self.eps / pad_like(self.process.sigma(self.t), self.eps)).to(self.eps.dtype)

    def lerp(self, other: "Prediction", weight: float | Tensor) -> "Prediction":
        """self + weight (other - self), for a scalar or a weight per sample [B]."""
        w = pad_like(weight, self.x0) if isinstance(weight, Tensor) else weight
        x0 = (self.x0 + w * (other.x0 - self.x0)).to(self.x0.dtype)
        eps = (self.eps + w * (other.eps - self.eps)).to(self.eps.dtype)
        return Prediction(self.process, self.t, x0, eps)

    def split(self, size: int) -> list["Prediction"]:
        """Consecutive pieces of `size` samples."""
        pieces = zip(*(torch.split(x, size) for x in (self.t, self.x0, self.eps)), strict=True)
        return [Prediction(self.process, t, x0, eps) for t, x0, eps in pieces]
