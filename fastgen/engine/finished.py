"""What the stages of a run have left on disk, for its report and for the stages that start from it."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from ..config.schema import Config
from ..errors import CheckpointError
from .distributed import broadcast, on_first
from .lineage import Weights
from .quality import read_weights


def finished_before(config: Config, start: int, *, say: Callable[[str], None]) -> dict[str, dict[str, Tensor]]:
    """The weights that the stages before number `start` left, by name; unreadable ones are reported and left out."""
    finished: dict[str, dict[str, Tensor]] = {}
    for stage in config.stages[:start]:
        try:
            finished[stage.name] = read_weights(config.out / "stages" / stage.name)
        except CheckpointError as error:
            say(f"the report will lack stage {stage.name!r}: {error}")
    return finished


def carried(config: Config, index: int) -> set[str]:
    """The origins that `carry` names for a stage; none where there is no such stage."""
    return {origin for stage in config.stages[index : index + 1] for origin in stage.carry.values()}


def named(config: Config, index: int, finished: Mapping[str, dict[str, Tensor]]) -> Weights:
    """What earlier stages left that a stage names, on every process.

    Args:
        finished: what is known of it on the first one; what is not is read.

    Raises:
        CheckpointError: it was left by a run that was ended, and is not there any more.
    """

    def left(name: str) -> dict[str, Tensor]:
        return finished.get(name) or read_weights(config.out / "stages" / name)

    names = {stage.name for stage in config.stages[:index]} & carried(config, index)
    return {name: broadcast(on_first(partial(left, name)) or {}) for name in sorted(names)}
