"""What a run says and leaves on disk while it trains."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .strict import Strict


class LogConfig(Strict):
    """What a run says while it trains.

    every: generator updates between log lines.
    previews: grids of samples per stage.
    trackers: of Accelerate, which get every logged value.
    """

    every: PositiveInt = 10
    previews: Annotated[int, Field(ge=0)] = 4
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)


class CheckpointsConfig(Strict):
    """When a run can be resumed from.

    every: images between checkpoints, null for a tenth of the stage's.
    keep: how many stay on disk.
    """

    every: PositiveInt | None = None
    keep: PositiveInt = 2
