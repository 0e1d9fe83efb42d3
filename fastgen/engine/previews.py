"""Pictures of the generator as it stands, where they can be made."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from PIL import Image

from ..models.pipelines.refusal import cause
from ..stopping import Stopped, interruptible
from .distributed import on_first
from .log import RunLog
from .quality import for_sampling
from .stage import Stage


@dataclass(frozen=True)
class Shown:
    """What was made when pictures were due.

    Attributes:
        pictures: by name, for the trackers.
        figures: of the pictures, likewise.
    """

    pictures: Mapping[str, Image.Image]
    figures: Mapping[str, float]


Preview = Callable[[Stage, str], Shown]
"""Called with the stage and a name when a picture is due; the generator has its averaged weights."""


class Previews:
    """The pictures of a run, which the first process makes.

    Args:
        preview: makes them; None makes none.
        log: of the run.
    """

    def __init__(self, preview: Preview | None, log: RunLog) -> None:
        self._preview, self._log = preview, log
        self._hindered = False

    def draw(self, stage: Stage, step: int) -> None:
        """Draws pictures of the generator as it is now, for a step of the run.

        A failure is reported once, and training goes on.
        """
        if self._preview is None:
            return
        name = f"{stage.index}-{stage.config.name}-{stage.position.images:09d}"
        drawn = partial(self._drawn, self._preview, stage, name, step)
        with for_sampling(stage), suppress(Stopped):  # which is heard again at the next boundary
            on_first(interruptible(drawn))

    def _drawn(self, preview: Preview, stage: Stage, name: str, step: int) -> None:
        try:
            shown = preview(stage, name)
            self._log.pictures(shown.pictures, shown.figures, step=step)
        except Exception as error:
            if not self._hindered:
                self._log.say(
                    f"no preview could be made ({cause(error)}); training goes on, without more such warnings"
                )
            self._hindered = True
