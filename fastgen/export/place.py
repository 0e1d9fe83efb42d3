"""Where an export is verified: whole on a device, or in parts on a GPU that has no room for all of it."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from ..errors import NoRoomError, NotInPartsError, ran_out
from ..models.made import Made
from ..models.pipelines.folders import check_is_pipeline
from ..models.pipelines.loading import check_weights, weight_files
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.weightless import networks_of

ROOM = 1.2  # device memory to be whole in, over the bytes of the pipeline in float32
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where networks in float32 sample, and how much of them is there at a time.

    Args:
        device: PyTorch's name of a device.
        whole: whether all of their weights are there at once; else, on a GPU, those of one block of ours or of one
            layer of the isolated process's, and the others wait in main memory or are made anew at each call.
    """

    device: str = "cpu"
    whole: bool = True

    def network(self, made: Made) -> nn.Module:
        """A network that is made here."""
        return made.whole(self.device) if self.whole else made.by_block(self.device)

    def pipe(self, load: Callable[..., StockPipeline], parts: Mapping[str, Any] | None = None) -> StockPipeline:
        """The pipeline that `load(device=..., parts=...)` gives, here.

        Args:
            parts: parts by name that are not read; they stay where and what they are.
        """
        pipe = load(device=self.device if self.whole else "cpu", parts=parts)
        if not self.whole:
            read = {name: part for name, part in networks_of(pipe).items() if part is not (parts or {}).get(name)}
            pipe.register_modules(**{name: self.network(Made(part)) for name, part in read.items()})
        return pipe

    def __str__(self) -> str:
        return self.device if self.whole else f"{self.device}, a part of the weights at a time"


CPU = Place()


def places(device: str | torch.device, needed: Callable[[], int], *, divisible: bool = True) -> Sequence[Place]:
    """Where to verify, in the order of trying: on a GPU whole, if there is room now, then in parts; elsewhere whole.

    Args:
        device: PyTorch's name of a device; "auto" is a GPU where there is one.
        needed: counts the bytes of the whole pipeline in float32; asked on a GPU alone.
        divisible: whether a pipeline may come in parts. One into whose weights its calls write may not: it is on the
            CPU where a GPU has no room for the whole.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type != "cuda":
        return [Place(str(device))]
    give_back(device)
    roomy = torch.cuda.mem_get_info(device)[0] > ROOM * needed()
    found = [Place(str(device))] if roomy else []
    if divisible:
        found.append(Place(str(device), whole=False))
    return found or [CPU]


def where_there_is_room(tried: Sequence[Place], work: Callable[[Place], T]) -> T:
    """What `work` gives at the first of these places that has the memory for it.

    What cannot be in parts is on the CPU where no GPU has room for the whole.

    Raises:
        NoRoomError: the last one has no memory for it.
    """
    waiting = list(tried)
    while True:
        place = waiting.pop(0)
        try:
            with needing_room():
                return work(place)
        except NotInPartsError:
            waiting = [CPU]
        except NoRoomError:
            if not waiting:
                raise
        give_back(place.device)


@contextmanager
def needing_room() -> Iterator[None]:
    """Within, memory that runs out is a `NoRoomError`, whatever PyTorch calls it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise NoRoomError((str(error) or type(error).__name__).splitlines()[0]) from error


def give_back(device: str | torch.device) -> None:
    """Hands free memory back, which networks in cycles keep, PyTorch of a device and the C library of main memory."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def bytes_in_float32(folder: Path, variant: str | None) -> int:
    """Bytes of a pipeline folder's weights once they are in float32, by the headers of its files.

    Raises:
        UserError: no pipeline, or a damaged weight file (named).
    """
    check_is_pipeline(folder)
    files = [file for part in weight_files(folder, variant).values() for file in part]
    check_weights(*files)
    return sum(map(_float32_bytes, files))


def _float32_bytes(file: Path) -> int:
    with safe_open(file, framework="pt") as content:
        shapes: list[list[int]] = [content.get_slice(name).get_shape() for name in content.keys()]  # noqa: SIM118
    return 4 * sum(map(prod, shapes))
