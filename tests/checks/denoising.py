"""Regression, denoising and dropped labels, against finite differences and closed-form floors."""

from dataclasses import replace

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    REAL,
    close,
    cubature,
    gaussian_roles,
    only,
    scripted,
    slopes,
    streams,
)
from recorder import Recorder
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Objective, Pair
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.regression.kd import KnowledgeDistillation
from fastgen.objectives.regression.pretrain import Pretrain
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.toy import toy_batch

REGRESSIONS: dict[str, tuple[Objective, float]] = {
    "kd": (KnowledgeDistillation(huber=0.3), 1.0),
    "dmd": (DMD(regression=0.4, huber=0.3), 0.4),
}


def check_regression(process: Process, name: str) -> None:
    """Weight, value and finite differences of sqrt(mean d^2 + c^2) - c, over the generator's mean."""
    objective, weight = REGRESSIONS[name]
    eps, wanted, *more = torch.randn(4, 12, 2, dtype=torch.float64)
    batch = scripted(*more)
    batch.pairs = Pair(eps, wanted)

    def expected(mean: Tensor) -> float:
        gap = mean + eps @ OTHER_FACTOR.T - wanted
        return weight * ((gap**2).sum(dim=1) / 2 + 0.09).sqrt().sub(0.3).mean().item()

    measured, _ = slopes(gaussian_roles(process), objective, batch, "regression")
    for axis in torch.eye(2, dtype=torch.float64):
        difference = expected(OTHER_MEAN + 1e-5 * axis) - expected(OTHER_MEAN - 1e-5 * axis)
        assert (measured @ axis).item() == pytest.approx(difference / 2e-5, abs=1e-7)


LEARNERS: dict[str, Objective] = {
    "pretrain": Pretrain(label_dropout=0.0, times=only(0.5), space="x0"),
    "vsd": VSD(fake_times=only(0.5), fake_space="x0"),
    "dmd": DMD(fake_times=only(0.5), fake_space="x0"),
    "dmd2": DMD2(gan=GAN(0.0), fake_times=only(0.5), fake_space="x0"),
}


def check_denoising_floor(process: Process, name: str, space: str = "x0") -> None:
    """The exact denoiser's loss is sum_j l_j sigma^2 / (alpha^2 l_j + sigma^2), divided by the dimension."""
    z, eps = cubature(2)
    objective = LEARNERS[name]
    if name == "pretrain":
        objective, covariance = replace(objective, space=space), COVARIANCE
        roles = Roles({"generator": ExactDenoiser(process, REAL)}, Plan([even_grid(1)]))
        real = MEAN + z @ torch.linalg.cholesky(COVARIANCE).T
        loss = objective.generator(roles, scripted(eps, real=real))["denoise"]
    else:
        objective, covariance = replace(objective, fake_space=space), OTHER_FACTOR @ OTHER_FACTOR.T
        loss = objective.fake_score(gaussian_roles(process), scripted(z, eps))["denoise"]
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = process.alpha(t) ** 2, process.sigma(t) ** 2
    values = torch.linalg.eigvalsh(covariance)
    floor = (values * sigma / (alpha * values + sigma)).sum() / 2
    close(loss, floor * {"x0": 1, "eps": alpha / sigma}[space])


def check_label_dropout(share: float) -> None:
    recorder = Recorder(ExactDenoiser(Flow(), PLANE))
    batch = toy_batch(PLANE, 4096, *streams().values())
    Pretrain(label_dropout=share).generator(Roles({"generator": recorder}, Plan([])), batch)
    told, labels = (cond.batched["class_labels"] for cond in (recorder.calls[0].cond, batch.cond))
    dropped = told == -1
    assert torch.equal(told[~dropped], labels[~dropped])
    assert dropped.double().mean().item() == pytest.approx(share, abs=0.03)
    assert labels[dropped].double().mean().item() == pytest.approx(0.5, abs=0.06) or share == 0
