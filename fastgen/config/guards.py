"""What is done where training goes wrong without breaking."""

from typing import Annotated, Literal

from pydantic import Field

from .strict import Strict


class GuardsConfig(Strict):
    """What happens where a turn, or what the generator draws, is out of line.

    What is not finite stops a run in any case.

    spikes: what to do when a loss or gradient norm spikes: ignore; warn; skip the step of the turn's roles; stop
        the run, before they are stepped.
    spike_at: robust standard deviations above the median of its last 64 turns from which a figure is a spike; none
        counts as smaller than a tenth of that median.
    """

    spikes: Literal["ignore", "warn", "skip", "stop"] = "warn"
    spike_at: Annotated[float, Field(gt=0)] = 50.0


USUAL = GuardsConfig()
