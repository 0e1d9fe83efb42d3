"""SANA-Sprint's loop in the terms of its network (Chen et al. 2025, arXiv:2503.09641, section 3.1).

Its scheduler walks a TrigFlow process of data scaled by sigma_data, but the network between is a flow-matching one: the
pipeline rescales x to the flow process, calls the network at s = sin u / (sin u + cos u) and carries the answer back.
"""

from dataclasses import replace
from math import cos, hypot, sin

import torch
from torch import Tensor

from ...process import ROWS, Flow, Reading
from .watch import Step

READING = Reading(
    Flow(),
    ROWS["flow"],
    timestep=lambda t: torch.atan2(t.double(), 1 - t.double()),
    time=lambda u: torch.sin(u.double()) / (torch.sin(u.double()) + torch.cos(u.double())),
)


def as_flow(step: Step, *, sigma_data: float) -> Step:
    """The step as the flow network sees it: x and the output carried back from the TrigFlow process."""
    u = step.timestep
    s = sin(u) / (sin(u) + cos(u))
    norm = hypot(s, 1 - s)
    x = step.sample * (norm / sigma_data)

    def flow(output: Tensor) -> Tensor:
        return (output * (norm / sigma_data) - (1 - 2 * s) * x) / (1 - 2 * s + 2 * s**2)

    return replace(step, sample=x, model_output=flow(step.model_output))
