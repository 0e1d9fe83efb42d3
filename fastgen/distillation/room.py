"""What a run writes at the least, against what its disks have: said before anything is loaded."""

import math
import shutil
from pathlib import Path

from torch import nn

from ..config.schema import Config, StageConfig
from ..disk import standing
from ..errors import UserError
from .plan import checkpoint_bytes, denoiser, parameters, started

LEAST = 2
"""Bytes of a number in an export, whatever its dtype."""


def check_room(config: Config, *, recipes: Path, resume: bool) -> None:
    """Refuses a run whose checkpoints and export do not fit on their disks; others are not known before.

    Raises:
        UserError: naming the folder, what it takes and what is free.
    """
    net = denoiser(config, recipes)
    if net is None:
        return
    start = started(config, net)
    checkpoints = max(
        checkpoint_bytes(stage, config, net, start) * _held(stage, config, resume) for stage in config.stages
    )
    needed = {config.out: checkpoints, config.exported: _exported(start)}
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        disks.setdefault(standing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        taken, free = sum(needed[folder] for folder in folders), shutil.disk_usage(standing(folders[0])).free
        if taken > free:
            raise UserError(
                f"the run writes at least {taken:,} bytes to {' and '.join(map(str, folders))}, where {free:,} are "
                "free: free some, give folders on a larger disk with out=... or export=..., or keep fewer checkpoints "
                "(checkpoints.keep)"
            )


def _held(stage: StageConfig, config: Config, resume: bool) -> int:
    """Checkpoints that are on the disk at once: those that are kept and the one that is written; some are there."""
    every = config.checkpoints.every
    written = math.ceil(stage.train.images / every) if every else 10
    return 1 if resume else min(config.checkpoints.keep + 1, written)


def _exported(net: nn.Module) -> int:
    return LEAST * parameters(net)
