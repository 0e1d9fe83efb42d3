"""Several processes, one evaluation: each takes a share of the images by their numbers, the first one measures."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Part = TypeVar("Part")


@dataclass(frozen=True)
class Processes:
    """This process among those that `accelerate launch` or torchrun started; alone without them."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def join(cls) -> "Processes":
        """Meets the others over gloo: only CPU tensors are exchanged, once per row."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=30))  # the first one measures, the others wait
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this one measures, prints and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of a name: of several processes, "cuda" and "auto" give each its own GPU."""
        if self.count > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local}"
        return name

    def share(self, total: int) -> range:
        """The numbers of this process's images: contiguous, as even as can be."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gather(self, part: Part) -> list[Part]:
        """The parts of all processes in order, on the first one; an empty list on the others."""
        if self.count == 1:
            return [part]
        parts: list[Part | None] | None = [None] * self.count if self.first else None
        dist.gather_object(part, parts, dst=0)
        return [one for one in parts or [] if one is not None]

    def wait(self) -> None:
        """Waits until the other processes have come as far."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Ends the connection."""
        if self.count > 1:
            dist.destroy_process_group()
