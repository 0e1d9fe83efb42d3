"""Samples of the teacher that are made before training."""

from pydantic import PositiveInt

from .strict import Strict


class PairsConfig(Strict):
    """Teacher samples for objectives that regress them: deterministic sampling from stored noises.

    count: pairs of noise and sample.
    steps: steps of the teacher's sampler.
    guidance: w of the teacher's samples; 1 is none.
    """

    count: PositiveInt = 1000
    steps: PositiveInt = 25
    guidance: float = 1.0
