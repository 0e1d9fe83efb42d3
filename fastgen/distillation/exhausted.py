"""What would make a run fit whose memory ran out, counted as `fastgen plan` counts it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from ..config.schema import Config
from ..config.yaml_file import load
from ..errors import NoMemoryError, UserError
from ..planning.cards import GIB, H100
from .costs import Reload, forecast_of, remedies

LARGEST = 3
"""Parts of the memory that are named."""
GOAL = 0.75
"""Share of what a run needs by the plan that it is to need at most, since it did not fit whatever the plan says."""
MIB = 2**20
BESIDE = (
    "`fastgen train --find-batch` finds the largest micro batch that fits; memory=low keeps in main memory what does "
    "not compute at the moment"
)


@contextmanager
def counted(config: Config, device: torch.device, *, recipes: Path) -> Iterator[None]:
    """Within, a run whose memory runs out says which parts are largest and what would make it fit, most saved first.

    Args:
        device: whose memory it is.
        recipes: folder that `teacher.recipe` is relative to.

    Raises:
        NoMemoryError: with that; with the general remedies where it cannot be counted.
    """
    try:
        yield
    except NoMemoryError as error:
        try:
            remedy = remedy_of(config, _saved(config, error.stage), error.stage, room=_size(device), recipes=recipes)
        except UserError:  # as of a teacher that cannot be called without weights
            raise error from None
        raise NoMemoryError(error.doing, error.reason, error.stage, remedy) from error


def _saved(config: Config, index: int) -> Reload:
    """The config of a running run, in which every stage has settings of its own, with changes to one."""

    def changed(more: Sequence[str]) -> Config:
        own = [f"stages.{index}.{setting}" if setting.startswith("train.") else setting for setting in more]
        return load(config.out / "config.yaml", own)

    return changed


def remedy_of(config: Config, reload: Reload, index: int, *, room: float, recipes: Path) -> str:
    """What a stage's memory goes to, and what would take clearly less, the most effective first.

    Args:
        reload: the config with changes to that stage.
        room: bytes that there are.

    Raises:
        UserError: it cannot be counted.
    """
    forecast = forecast_of(config, index, card=replace(H100, memory=room), recipes=recipes)
    needed, highest = H100.needs(forecast), forecast.highest
    card = replace(H100, memory=min(room, GOAL * needed))
    parts = {part.name: part.bytes for part in forecast.parts}
    parts |= {"activations": highest.peak - highest.gradients, "gradients": highest.gradients}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:LARGEST]
    found = remedies(reload, index, forecast, card=card, recipes=recipes)
    changes = sorted(found.changes, key=lambda change: -change.saves)
    saved = [f"{' '.join(change.overrides)} (saves {_told(change.saves)})" for change in changes]
    return (
        f"By the plan it needs {_told(needed)}, most of it for "
        f"{', '.join(f'{name} ({_told(size)})' for name, size in largest)}; it would need "
        f"{_told(card.needs(found.forecast))} with {', '.join(saved) or 'no setting known here'}. {BESIDE}"
    )


def _size(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _told(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / MIB:.2f} MiB"
