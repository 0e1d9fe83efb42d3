"""What is said of a stage while it trains: its bar, its lines in the log, how long it will take."""

from collections.abc import Mapping

import torch

from ..config.schema import Config
from .bar import Bar
from .log import RunLog
from .pace import Pace
from .quality import Quality
from .stage import Stage


def step_at(config: Config, stage: int, images: int) -> int:
    """Where a run stands at so many images of a stage: the images of all stages before are counted."""
    return images + sum(one.train.images for one in config.stages[:stage])


class Telling:
    """Tells of one stage.

    Args:
        log: of the run.
        config: of the run.
        device: whose memory is told.
    """

    def __init__(self, log: RunLog, config: Config, stage: Stage, device: torch.device) -> None:
        self._log, self._config, self._stage = log, config, stage
        self._pace = Pace(device, stage.position, lambda: stage.feed.loader.waited)
        self._bar: Bar = log.bar(_named(config, stage), share=stage.share)

    def __enter__(self) -> "Telling":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def move(self) -> None:
        """A cycle is over."""
        self._bar.move(self._stage.position.images, self._stage.share)
        train = self._stage.config.train
        if foretold := self._pace.foretold(train.images, train.minutes):
            self._log.say(f"stage {self._stage.config.name!r}: {foretold}")

    def report(self, figures: Mapping[str, float], quality: Quality, *, note: str | None = None) -> None:
        """A line of the log with the latest figures, which the bar shows as well."""
        stage, position, pace = self._stage, self._stage.position, self._pace.figures()
        self._log.write(
            stage=stage.index,
            cycle=position.cycle,
            step=step_at(self._config, stage.index, position.images),
            values={"images": position.images, **figures},
            pace=pace,
            note=note,
        )
        self._bar.tell(figures, [f"{name} {value}" for name, value in quality.shown.items()], pace)


def _named(config: Config, stage: Stage) -> str:
    count = len(config.stages)
    return stage.config.name if count == 1 else f"stage {stage.index + 1}/{count} {stage.config.name}"
