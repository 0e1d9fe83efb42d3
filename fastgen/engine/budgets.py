"""How long the stages of a resumed run are trained: another budget than the checkpoint's, where nothing had read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config.schema import StageConfig
from ..errors import CheckpointError
from ..objectives import roles_of

SETTINGS = ("images", "minutes")
"""What of `train` says when a stage ends."""


class Budget(NamedTuple):
    """When a stage ends."""

    images: int
    minutes: float | None

    def __str__(self) -> str:
        return f"{self.images:,} images" + (f" or {self.minutes:g} minutes" if self.minutes is not None else "")


@dataclass(frozen=True)
class Begun:
    """How far a checkpoint is: the stage that it is of, and what its state says of that one's training."""

    path: Path
    state: Mapping[str, Any]

    def new_budget(self, index: int, stage: StageConfig, was: Budget) -> str:
        """Check that a resumed run may give a stage another budget, and return the sentence that says so.

        A stage that has not begun may get any budget, and a stage that is over must keep its own. The current stage may
        end at any point that is not yet passed, unless learning rates that were already used depend on where it ends.
        Nothing else depends on that: what an objective starts or changes is counted from the stage's beginning.

        Raises:
            CheckpointError: with the new budget it would be another run than the checkpoint's.
        """
        now, current = Budget(stage.train.images, stage.train.minutes), self.state["stage"]
        if index < current:
            raise self._refusal(stage, was, now, "which is over", "leave its budget as it was")
        if index == current:
            self._check_remaining(stage, was, now)
            self._check_schedules(stage, was, now)
        return f"stage {stage.name!r} ends after {now}, which was {was}"

    def _check_remaining(self, stage: StageConfig, was: Budget, now: Budget) -> None:
        """Refuses an end that lies before what is trained."""
        images, minutes = self.state["position"]["images"], self.state["position"]["seconds"] / 60
        if now.images < was.images and now.images < images:
            raise self._refusal(stage, was, now, f"{images:,} of which are trained", f"give at least {images}")
        if now.minutes is not None and now.minutes != was.minutes and now.minutes < minutes:
            raise self._refusal(stage, was, now, f"{minutes:.3g} minutes of which are over", "give more of them")

    def _check_schedules(self, stage: StageConfig, was: Budget, now: Budget) -> None:
        """Refuses another end of learning rates that fell towards the old one; those of the warm-up do not."""
        if now.images == was.images:
            return
        for role in roles_of(stage.objective):
            optim, updates = stage.train.optim_of(role), self.state["optimizers"].get(role, {}).get("updates", 0)
            if optim.schedule != "constant" and updates > optim.warmup:
                reason = f"whose {role} has learned at rates that fall to zero there (optim.schedule={optim.schedule})"
                remedy = f"resume with train.images={was.images}"
                raise self._refusal(stage, was, now, reason, remedy)

    def _refusal(self, stage: StageConfig, was: Budget, now: Budget, reason: str, remedy: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint {self.path} is of a run whose stage {stage.name!r} ends after {was}, {reason}, and now it "
            f"would after {now}: {remedy}, or start in another folder (out=...)"
        )


def without_budgets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint that says nothing of when stages end."""
    stages = [
        {**stage, "train": {name: value for name, value in stage["train"].items() if name not in SETTINGS}}
        for stage in settings["stages"]
    ]
    return {**settings, "stages": stages}


def budgets(settings: Mapping[str, Any]) -> list[Budget]:
    """The budgets of the stages in a fingerprint."""
    return [Budget(*(stage["train"].get(name) for name in SETTINGS)) for stage in settings["stages"]]
