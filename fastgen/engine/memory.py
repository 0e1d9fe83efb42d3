"""Whether a stage's turns fit their device as they are, or how many blocks are computed again in `backward`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.recompute import free_bytes, kept_bytes
from ..models.regions import as_written
from ..models.roles import Roles
from ..objectives import Turn, denoisers_of, roles_of
from ..seeds import stream
from .distributed import broadcast
from .splitting import micro_batches
from .stage import Stage

ROOM = 0.8
"""Share of the free memory that is given away; the rest is for what single calls and updates compute with, and for
gaps."""
SHARES = (4, 3, 2, 1)
"""Of so many blocks one is computed again: what is tried, one after the other."""
GIB = 2**30


@dataclass(frozen=True)
class Room:
    """Bytes on a device before a stage begins, of the turn that needs most.

    Args:
        kept: for its backward pass.
        state: its gradients, and the moments still to come.
        free: left by what is there, which is all else: weights, what stands beside them, and the average.
        recorded: what graphs of another turn keep meanwhile; a turn's first calls come before they are recorded, and
            have memory of their own.
    """

    kept: int
    state: int
    free: int
    recorded: int = 0

    @property
    def enough(self) -> bool:
        return self.kept + self.recorded + self.state <= ROOM * self.free

    def __str__(self) -> str:
        kept, state, free, graphs = (f"{n / GIB:.1f}" for n in (self.kept, self.state, self.free, self.recorded))
        beside = f", graphs of another one {graphs} GiB" if self.recorded else ""
        return (
            f"a turn keeps {kept} GiB for its backward pass{beside} and training {state} GiB, of {free} GiB that are "
            "free"
        )


def settle_recompute(stage: Stage) -> str | None:
    """Decides `train.gradient_checkpointing: auto` by measuring; returns what a user should know of it, if anything.

    Raises:
        UserError: blocks need to be computed again, and the network does not support it.
    """
    if stage.config.train.gradient_checkpointing != "auto":
        return None
    room = room_for(stage)
    if broadcast(room.enough) or stage.config.objective.needs.second_derivative:
        return f"{room}: no block is computed again"
    for share in SHARES:
        _compute_again(stage, share)
        if share == 1 or broadcast(room_for(stage).enough):
            break
    return f"{room}: {'blocks are' if share == 1 else f'one block in {share} is'} computed again"


def room_for(stage: Stage) -> Room:
    """What the turns of a stage need, measured by one of each, without updates; nothing of the stage changes."""
    needs = [(_kept(stage, turn), _state(stage, turn)) for turn in dict.fromkeys(stage.config.objective.cycle)]
    most = max(needs, key=sum)
    needs.remove(most)
    recorded = max((kept for kept, _ in needs), default=0) if stage.graphed else 0
    return Room(*most, free_bytes(stage.accelerator.device), recorded)


def _compute_again(stage: Stage, share: int) -> None:
    for role in denoisers_of(stage.config.objective):
        if role in (*roles_of(stage.config.objective), "target"):
            stage.roles.network(role).checkpoint_blocks(share)


def _state(stage: Stage, turn: Turn) -> int:
    """Bytes that a turn adds to what is there: its gradients and moments, and where they stay, those of idle roles."""
    acting = [role for role in turn if role in stage.optimizers]
    moments = (stage.optimizers[role].optimizer.to_come() for role in (acting if stage.sparing else stage.optimizers))
    return sum(stage.optimizers[role].gradients for role in acting) + sum(moments)


def _kept(stage: Stage, turn: Turn) -> int:
    settings, device = stage.config.train, stage.accelerator.device
    rows, _ = micro_batches(settings, stage.accelerator.num_processes)
    batch = stage.feed.batch(
        0, rows, rng=stream(device, stage.seed, "room"), shared_rng=stream(torch.device("cpu"), stage.seed, "room")
    )
    batch.images = settings.images  # late enough for every term to have begun

    def forward() -> Any:
        return getattr(stage.config.objective, turn[0])(stage.roles, batch)

    with as_written(), stage.roles.training(turn), _unchanged(stage.roles, stage.config.objective.needs.states):
        return kept_bytes(forward, _weights(stage.roles))


def _weights(roles: Roles) -> Iterator[Tensor]:
    for member in roles.members.values():
        net: Any = getattr(member, "net", member)
        yield from (*net.parameters(), *net.buffers(), *member.parameters())


@contextmanager
def _unchanged(roles: Roles, states: tuple[str, ...]) -> Iterator[None]:
    """Within, these small members may change; afterwards they are as before."""
    modules: list[nn.Module] = [roles[name] for name in states]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    try:
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
