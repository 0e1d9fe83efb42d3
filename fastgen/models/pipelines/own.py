"""The teacher's own scheduler, held against our reading of it by a network that knows the answer.

The probe watches a pipeline by the plainest scheduler of its process (`canonical`), which proves nothing of the one
that the pipeline came with. Here the stock loop runs with that one, over an oracle in the network's place: the data are
a single point x0, so that the true belief about any x_t is x0 and the noise in it, and the oracle says it in the words
of our reading. A scheduler that means the same by them, whatever its order, its stops and its guards against large
values,

- keeps the sample at alpha x0 + sigma eps, as the network is shown it. Where it draws noise, which is silenced here,
  less of eps is left, and all of alpha x0;
- tells the network the time of that level, rounded to a whole number if its timesteps are;
- ends at x0, or at least at less noise than its last stop has.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .oracle import Oracle, Read
from .refusal import checking
from .stock_pipeline import StockPipeline
from .watch import record


def hold_to_own_scheduler(pipe: StockPipeline, call: Mapping[str, Any], read: Read, *, steps: int) -> None:
    """Runs the stock call with the pipeline's own scheduler over an oracle that speaks by our reading.

    Args:
        pipe: left as it was.
        call: the call's own arguments for one sample, unguided.
        read: what is to be held.
        steps: step count of the call.

    Raises:
        UserError: the scheduler means something else; it names its settings, the step and what was measured.
    """
    with _own(pipe) as scheduler:
        oracle = Oracle(type(pipe).__name__, scheduler, read)
        check = f"its call runs under its own scheduler, {type(scheduler).__name__}"
        with checking(oracle.name, check, remedy=read.remedy):
            seen = record(pipe, call, steps=steps, rows=1, answer=oracle.answer, step=oracle.step)
        oracle.end(seen[-1].stepped)


@contextmanager
def _own(pipe: StockPipeline) -> Iterator[Any]:
    """Within, the pipeline has a copy of its scheduler, which it may wear out."""
    original = pipe.scheduler
    pipe.scheduler = copy.deepcopy(original)
    try:
        yield pipe.scheduler
    finally:
        pipe.scheduler = original
