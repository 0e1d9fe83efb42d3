"""Pictures of the generator as it stands, where they can be made."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..models.pipelines.refusal import cause
from ..stopping import Stopped, interruptible
from .distributed import alone
from .log import RunLog
from .quality import shown
from .stage import Stage

Preview = Callable[[Stage, str], None]
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

    def draw(self, stage: Stage) -> None:
        """One of the generator as it stands; what hinders it is said once, and training goes on."""
        if self._preview is None:
            return
        name = f"{stage.index}-{stage.config.name}-{stage.position.images:09d}"
        drawn = partial(self._drawn, self._preview, stage, name)
        with shown(stage), suppress(Stopped):  # which is heard again at the next boundary
            alone(interruptible(drawn))

    def _drawn(self, preview: Preview, stage: Stage, name: str) -> None:
        try:
            preview(stage, name)
        except Exception as error:
            if not self._hindered:
                self._log.say(
                    f"no preview could be made ({cause(error)}); training goes on, without more such warnings"
                )
            self._hindered = True
