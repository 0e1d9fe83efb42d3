"""What takes less memory where a run's ran out, told from what `fastgen plan` counts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from ..config.schema import Config
from ..config.train import TrainConfig
from ..errors import NoMemoryError, UserError
from ..planning.cards import GIB, H100
from ..planning.pools import KEPT
from .costs import forecast_of

LARGEST = 3
"""Parts of the memory that are named."""
MIB = 2**20
WORTH = 0.01
"""Share of the memory that a setting has to save to be named."""
BESIDE = (
    "`fastgen train --find-batch` finds the largest micro batch that fits, and `fastgen plan CONFIG --memory GIB` "
    "tries out what settings would save together; memory=low keeps in main memory what does not compute at the moment"
)
_UNCOUNTED: Sequence[tuple[str, Callable[[Config, TrainConfig], bool]]] = (
    (
        "train.gradient_checkpointing=true (most of the activations)",
        lambda _, train: bool(train.gradient_checkpointing),
    ),
    ("train.cuda_graphs=false (what graphs keep from call to call)", lambda _, train: not train.graphed),
    ("train.precision=bf16 (half of the activations)", lambda _, t: t.precision != "fp32"),
    ("sharing=lora (one network for all roles)", lambda config, _: config.sharing == "lora"),
)
"""Settings whose savings the plan of other settings does not tell, and whether a run has them."""


@contextmanager
def naming_remedies(config: Config, device: torch.device, *, recipes: Path) -> Iterator[None]:
    """Within, a run whose memory runs out says which parts are largest and what takes less, most saved first.

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
            remedy = remedy_of(config, error.stage, room=_size(device), recipes=recipes)
        except UserError:  # as of a teacher that cannot be called without weights
            raise error from None
        raise NoMemoryError(error.doing, error.reason, error.stage, remedy) from error


def remedy_of(config: Config, index: int, *, room: float, recipes: Path) -> str:
    """What a stage's memory goes to, and what would take less, the most effective first.

    The plan is made once: what settings save is told from its parts, which takes seconds where trying them all out, as
    `fastgen plan` does, takes minutes.

    Args:
        room: bytes that there are.

    Raises:
        UserError: it cannot be counted.
    """
    card = replace(H100, memory=room)
    forecast = forecast_of(config, index, card=card, recipes=recipes)
    parts = {part.name: part.bytes for part in forecast.parts}
    highest = forecast.highest
    parts |= {"activations": highest.peak - highest.gradients, "gradients": highest.gradients}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:LARGEST]
    train = config.stages[index].train
    savings = sorted(_savings(train, parts, forecast.rows), key=lambda saving: -saving[1])
    told = [f"{setting} (saves about {_told(size)})" for setting, size in savings if size >= WORTH * forecast.bytes]
    others = [setting for setting, already in _UNCOUNTED if not already(config, train)]
    return (
        f"By the plan it needs {_told(card.needs(forecast))}, most of it for "
        f"{', '.join(f'{name} ({_told(size)})' for name, size in largest)}. What takes less: "
        f"{', '.join([*told, *others]) or 'no setting known here'}. {BESIDE}"
    )


def _savings(train: TrainConfig, parts: Mapping[str, int], rows: int) -> Iterator[tuple[str, float]]:
    """Settings, and the bytes that each alone would save."""
    yield "train.micro_batch=1", (parts["activations"] + parts.get(KEPT, 0)) * (1 - 1 / rows)
    if train.optim.name == "adamw":
        yield "train.optim.name=adamw8bit", sum(size for name, size in parts.items() if "moments" in name) * 3 / 4
    if train.ema_device == "auto":
        yield "train.ema_device=cpu", sum(size for name, size in parts.items() if "average" in name)


def _size(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _told(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / MIB:.2f} MiB"
