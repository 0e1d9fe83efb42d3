"""The algebra of diffusion: processes, predictions, times. Imports nothing else of fastgen."""

from .families import EDM, Discrete, Flow, Trig
from .known import joined
from .prediction import ROWS, Prediction, Row
from .process import Kernel, Process, Retargeted, pad_like
from .scheduler import Reading, from_scheduler
from .times import AnyTimeLaw, Beta, Karras, LogitNormal, LogNormal, TimeLaw, Uniform, even_grid, laid, shifted
from .types import Latent, Levels, Time

__all__ = [
    "EDM",
    "ROWS",
    "AnyTimeLaw",
    "Beta",
    "Discrete",
    "Flow",
    "Karras",
    "Kernel",
    "Latent",
    "Levels",
    "LogNormal",
    "LogitNormal",
    "Prediction",
    "Process",
    "Reading",
    "Retargeted",
    "Row",
    "Time",
    "TimeLaw",
    "Trig",
    "Uniform",
    "even_grid",
    "from_scheduler",
    "joined",
    "laid",
    "pad_like",
    "shifted",
]
