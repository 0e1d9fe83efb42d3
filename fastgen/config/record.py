"""What a run says and leaves on disk while it trains."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .strict import Strict


class LogConfig(Strict):
    """What a run says while it trains.

    every: generator updates between log lines.
    previews: grids of samples per stage, beside one of the teacher's at the same seeds.
    trackers: Accelerate's trackers that get every logged value, and the pictures.
    """

    every: PositiveInt = 10
    previews: Annotated[int, Field(ge=0)] = 4
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "swanlab"], ...] = ("tensorboard",)


class TimeoutsConfig(Strict):
    """How long a run waits for what does not answer, in seconds, before it ends with a message.

    data: seconds for a batch of the data source.
    process: seconds for a sign of life of another process; one that works alone gives them, however long it works.
    hub: seconds for an answer of the Hugging Face hub, and for every next part of a file from there.
    """

    data: Annotated[float, Field(gt=0)] = 300.0
    process: Annotated[float, Field(ge=2)] = 300.0
    hub: Annotated[float, Field(gt=0)] = 30.0


class CheckpointsConfig(Strict):
    """When a run can be resumed from.

    every: images between checkpoints, null for a tenth of the stage's.
    keep: number of checkpoints that stay on disk.
    """

    every: PositiveInt | None = None
    keep: PositiveInt = 2
