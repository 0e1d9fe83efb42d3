"""How a run is measured, by `eval`: few samples of the same seeds while it trains, and a report of what it left.

Loads what `eval` looks at images through, so that `distil` imports it for a run that is measured alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...config.evaluate import EvaluateConfig
from ...engine.quality import Yardstick
from ...engine.run import Trained
from ..student import Student
from .report import report
from .view import options_of, protocol_of
from .yardstick import decisive_of, yardstick_of


@dataclass(frozen=True)
class Monitor:
    """How a run is measured.

    Attributes:
        yardstick: yardstick of its generator while it trains.
        report: report of what it left, beside its teacher.
    """

    yardstick: Yardstick
    report: Callable[[Trained], None]


def monitor(student: Student, *, here: bool) -> Monitor:
    """What the config's `evaluate` asks for; its protocol is not none.

    Args:
        student: student of the run.
        here: whether this process is the one that measures, and so needs references.

    Raises:
        UserError: the metric is unknown, the protocol cannot look at these samples, or extractor or references are
            missing.
    """
    protocol = protocol_of(student.config.evaluate)
    protocol.check(student.pipeline.shape, len(student.pipeline.classes))
    return Monitor(yardstick_of(student, here=here), _no_report if protocol.own is None else partial(report, student))


def check_measured(spec: EvaluateConfig) -> None:
    """Raises UserError for a figure that the protocol does not have, or where its network is not on this machine."""
    decisive_of(spec)
    protocol_of(spec).network(options_of(spec))


def _no_report(trained: Trained) -> None:
    """A protocol without real images of its own reports when it is asked, by `fastgen eval`."""
