"""What a student was trained for, written down so that an export can be held against it."""

import math
from collections.abc import Sequence

import torch

from ..models.pipelines.notes import Stop
from ..process import Reading

_TOLERANCE = 1e-5


def stops_of(reading: Reading, timesteps: Sequence[float]) -> tuple[Stop, ...]:
    """The stops of a sampler at those scheduler timesteps, by the reading that the student is trained with."""
    listed = torch.tensor(timesteps, dtype=torch.float64)
    times = reading.time(listed)
    row = reading.row(reading.process, times)
    columns = (listed, times, reading.process.alpha(times), reading.process.sigma(times), row.p, row.q)
    names = ("timestep", "time", "alpha", "sigma", "p", "q")
    return tuple(Stop(**dict(zip(names, map(float, values), strict=True))) for values in zip(*columns, strict=True))


def difference(ours: Sequence[Stop], theirs: Sequence[Stop]) -> str | None:
    """What the first stop that differs says of one and of the other; None where all are the same."""
    for trained, found in zip(ours, theirs, strict=True):
        for name, value in vars(trained).items():
            other = vars(found)[name]
            if not math.isclose(value, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
                return f"{name} is {other:.6g} at timestep {found.timestep:g}, but {value:.6g} was trained"
    return None
