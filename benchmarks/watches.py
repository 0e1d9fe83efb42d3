"""What a step costs: seconds between marks on the device, its kernels and how long they kept it busy, its FLOPs."""

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

GIB, TOP = 2.0**30, 40
VIEWS = ("view", "detach", "alias", "expand", "permute", "transpose", "aten.t.", "squeeze", "select", "slice", "split")


def _product(_self: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of a product [n, k] [k, m]."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


FORMULAS = {**flop_registry, torch.ops.aten.addmm_: _product}
"""FLOPs by operation; PyTorch's own formulas leave out the product in place."""


class Watch:
    """Marks on a device's time line; on a GPU they are events of its stream, and nothing waits until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What ends now."""
        self._marks.append((name, self._now()))

    def laps(self) -> list[tuple[str, float]]:
        """(name, seconds since the mark before) of all marks but the first, which are then forgotten."""
        synchronise(self.device)
        marks, self._marks = self._marks, []
        return [(name, self._between(before, now)) for (_, before), (name, now) in pairwise(marks)]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, now: Any) -> float:
        return float(before.elapsed_time(now) / 1000 if self.device.type == "cuda" else now - before)


class Operations(TorchDispatchMode):
    """Within, `counted` has what is dispatched by name, without views, which launch nothing; `flops` their sum.

    PyTorch's own counter of FLOPs keeps every graph alive that was made within it, which at SDXL's size fills a card.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim" and not any(view in str(func) for view in VIEWS):
            self.counted[str(func)] += 1
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


@dataclass(frozen=True)
class Profile:
    """Of one call.

    Attributes:
        kernels: launched; None without a GPU.
        busy: seconds in which at least one of them ran.
        top: (kernel, seconds, launches), the longest first.
        idle: (seconds, times, kernel before, kernel after) in which none ran, the longest first.
        operations: dispatched by PyTorch, without views.
        syncs: times that the host waited for the device; None without a GPU.
    """

    kernels: int | None
    busy: float | None
    top: list[tuple[str, float, int]]
    idle: list[tuple[float, int, str, str]]
    operations: int
    syncs: int | None


def profiled(call: Callable[[], Any], device: torch.device) -> Profile:
    """Three calls: one under the profiler, one with its operations counted, one with its waits counted."""
    with Operations() as operations:
        call()
    count = operations.counted.total()
    if device.type != "cuda":
        top = [(name, 0.0, launches) for name, launches in operations.counted.most_common(TOP)]
        return Profile(None, None, top, [], count, None)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        synchronise(device)
    events: list[Any] = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    seconds, launches = Counter[str](), Counter[str]()
    for event in events:
        seconds[event.name] += event.time_range.elapsed_us() / 1e6
        launches[event.name] += 1
    top = [(name[:120], took, launches[name]) for name, took in seconds.most_common(TOP)]
    spans = [(event.time_range.start, event.time_range.end, event.name[:120]) for event in events]
    gaps = _gaps(spans)
    first, last = min(start for start, *_ in spans), max(end for _, end, _ in spans)
    busy = (last - first - sum(length for length, *_ in gaps)) / 1e6
    return Profile(len(kernels), busy, top, _longest(gaps), count, _syncs(call))


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attentions, those of the backward pass too."""
    with Operations() as operations:
        call()
    return int(operations.flops)


def medians(cycles: Iterable[list[tuple[str, float]]]) -> dict[str, float]:
    """The median over cycles of the seconds of each turn by name, turns of one name in a cycle averaged; of "cycle"."""
    taken: dict[str, list[float]] = {}
    for laps in cycles:
        for name in dict.fromkeys(name for name, _ in laps):
            of_one = [seconds for lap, seconds in laps if lap == name]
            taken.setdefault(name, []).append(sum(of_one) / len(of_one))
        taken.setdefault("cycle", []).append(sum(seconds for _, seconds in laps))
    return {name: median(values) for name, values in taken.items()}


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float | None:
    """GiB allocated at most since the last call; None without a GPU."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / GIB
    torch.cuda.reset_peak_memory_stats(device)
    return most


def kept(device: torch.device) -> float | None:
    """GiB that stay with this process once all that is merely cached is given back, pools of graphs too."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / GIB


def _syncs(call: Callable[[], Any]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def _gaps(spans: list[tuple[float, float, str]]) -> list[tuple[float, str, str]]:
    """What no span covers between the first and the last: its length, and the names before and after it."""
    found, reached, before = [], float("inf"), ""
    for start, end, name in sorted(spans):
        if start > reached:
            found.append((start - reached, before, name))
        if before == "" or end > reached:
            reached, before = end, name
    return found


def _longest(gaps: list[tuple[float, str, str]]) -> list[tuple[float, int, str, str]]:
    """Gaps between the same names together: seconds, times, names; the longest first."""
    seconds, times = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for length, before, after in gaps:
        seconds[before, after] += length / 1e6
        times[before, after] += 1
    return [(took, times[names], *names) for names, took in seconds.most_common(TOP)]
