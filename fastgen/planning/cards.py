"""What cards do, as measured in training: from counted work to seconds, and what of their memory can be had.

The figures of an H100 are those of `docs/performance.md` (Before and after): an eager SDXL cycle of batch 4 with LoRAs
is bound by its host, 39 us a launch, 120 us where a block is computed again (the hooks of a checkpoint take the rest).
The GPU's own share is its profile's busy time, 2.1 s for 638 TFLOP and 1.25 TB. An H200 is the same chip with 1.43
times the bandwidth (4.8 and 3.35 TB/s by NVIDIA's data sheets).
"""

from dataclasses import dataclass, replace

from .forecast import Forecast
from .meter import Tally

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card with its host.

    Attributes:
        memory: bytes that PyTorch can have.
        half, full: FLOP/s of matrix products in half precision and in fp32 with TF32 off.
        bandwidth: bytes/s that other kernels read and write.
        launch, again: seconds of the host for a launch, and for one of a block that is computed again.
        workspace: bytes that libraries keep for themselves.
        link: bytes/s between cards of one host, per card.
    """

    name: str
    memory: float
    half: float
    full: float
    bandwidth: float
    launch: float
    again: float
    workspace: float = 0.1 * GIB
    link: float = 300e9

    def seconds(self, work: Tally, *, recorded: bool = False) -> float:
        """The seconds of a turn: host and device work side by side, and the slower of them counts.

        Args:
            recorded: whether calls of networks are CUDA graphs, whose launches cost the host next to nothing.
        """
        host = 0.0 if recorded else self.launch * (work.launches - work.again) + self.again * work.again
        device = work.half_flops / self.half + work.full_flops / self.full + work.moved / self.bandwidth
        return max(host, device)

    def cycle(self, forecast: Forecast, *, gpus: int = 1) -> float:
        """Seconds of a cycle, gradients of several cards averaged after each backward pass."""
        share = 2 * (gpus - 1) / gpus / self.link
        turns = (self.seconds(turn.work, recorded=forecast.recorded) for turn in forecast.turns)
        return sum(turns) + share * sum(turn.gradients for turn in forecast.turns)

    def needs(self, forecast: Forecast) -> float:
        """Bytes at most, with what libraries keep."""
        return forecast.bytes + self.workspace

    def holds(self, forecast: Forecast) -> bool:
        """Whether there is room for it, with a fiftieth for what falls between allocations."""
        return self.needs(forecast) <= 0.98 * self.memory

    def of(self, memory: float) -> "Card":
        """The same with so many GiB."""
        return replace(self, name=f"{self.name} of {memory:g} GiB", memory=memory * GIB)


H100 = Card("h100", 78 * GIB, half=320e12, full=45e12, bandwidth=2.1e12, launch=39e-6, again=120e-6)
CARDS = {card.name: card for card in (H100, replace(H100, name="h200", memory=139 * GIB, bandwidth=3.0e12))}
"""Cards by name."""
