"""Processes of every kind, some of them from schedulers of Diffusers."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
)

from fastgen.process import (
    EDM,
    Discrete,
    Flow,
    Process,
    Trig,
)

SD = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
ZERO_SNR = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
PROCESSES = {
    "sd": Discrete(SD.alphas_cumprod),
    "cosine": Discrete(COSINE.alphas_cumprod),
    "zero_snr": Discrete(ZERO_SNR.alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
TIMES = torch.linspace(0.0005, 0.999, 801, dtype=torch.float64)


def triple(process: Process, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, len(t), 3, 2, 2, dtype=torch.float64)
    return x0, eps, process.renoise(x0, t, eps)
