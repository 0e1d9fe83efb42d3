"""What optimizers keep of idle roles, in main memory until these are trained again."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.offload import Lane, locked_like


class Moments:
    """Moments of several optimizers; only those of the acting roles are on the device, all others in main memory.

    They are copied while the turns compute. When another role begins to act, the moments of the previous one move to
    main memory, and those of the new one arrive in the memory that this frees, in time for its optimizer's step. Memory
    that no role takes over is released.

    Args:
        optimizers: role -> its optimizer, whose moments are on the device.
        device: device of the networks.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer], device: torch.device) -> None:
        self._optimizers = dict(optimizers)
        self._device, self._lane = device, Lane(device)
        self._away: set[str] = set()
        self._homes: dict[str, list[Tensor]] = {}
        self._spare: defaultdict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)

    def attend(self, acting: Collection[str]) -> None:
        """Begins to move: of these roles to the device, of all others away."""
        with self._lane.copying():
            for role in [role for role in self._optimizers if role not in self._away and role not in acting]:
                self._leave(role)
            for role in [role for role in self._optimizers if role in self._away and role in acting]:
                self._arrive(role)

    def wait(self) -> None:
        """Let the device's next computations wait for the copies, and release memory that no role took over."""
        self._lane.wait(self._lane.mark())
        self._spare.clear()

    def settle(self) -> None:
        """Waits until all of it can be read on the host."""
        self._lane.settle()

    def _leave(self, role: str) -> None:
        kept = list(self._kept(role))
        if not kept:
            return
        if role not in self._homes:
            self._homes[role] = list(locked_like([state[name] for state, name in kept], self._device))
        for (state, name), home in zip(kept, self._homes[role], strict=True):
            home.copy_(state[name], non_blocking=True)
            self._spare[home.shape, home.dtype].append(state[name])
            state[name] = home
        self._away.add(role)

    def _arrive(self, role: str) -> None:
        for state, name in self._kept(role):
            spare = self._spare[state[name].shape, state[name].dtype]
            there = spare.pop() if spare else torch.empty_like(state[name], device=self._device)
            state[name] = there.copy_(state[name], non_blocking=True)
        self._away.remove(role)

    def _kept(self, role: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields the places of a role's moments: in the state of each parameter, every tensor but single numbers."""
        for state in self._optimizers[role].state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    yield state, name
