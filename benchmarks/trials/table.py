"""A table of trials, from a YAML file beside this one or anywhere."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastgen.config.schema import Config
from fastgen.config.shipped import named
from fastgen.config.yaml_file import load
from fastgen.errors import UserError

from .protocols import PROTOCOLS

HERE = Path(__file__).parent


class Trial(BaseModel):
    """A run of a table.

    config: under configs/, without ending.
    set: overrides.
    steps: that the student is measured at; those that it is made for where not given.
    seed: of the run.
    minutes, protocol: in place of the table's.
    ends: by its minutes, or by the config's images, for which the minutes are then an estimate.
    note: what a reader of its figures should know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str
    set: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    seed: int = 0
    minutes: Annotated[float, Field(gt=0)] | None = None
    ends: Literal["minutes", "images"] = "minutes"
    protocol: str | None = None
    note: str = ""

    def loaded(self, *more: str) -> Config:
        """Its settings.

        Raises:
            UserError: they do not fit.
        """
        return load(named(self.config).path, [*self.set, *more])

    def budget(self, minutes: float) -> list[str]:
        """Overrides that give its stages so many minutes in all, in their own proportions; none if images end it.

        Raises:
            UserError: a stage has no minutes.
        """
        if self.ends == "images":
            return []
        stages = self.loaded().stages
        own = [stage.train.minutes for stage in stages]
        if None in own:
            name = stages[own.index(None)].name
            raise UserError(f"{self.config} has no minutes for its stage {name}: give it some under `set`")
        total = sum(filter(None, own))
        staged = "stages" in yaml.safe_load(named(self.config).text) or any(s.startswith("stages=") for s in self.set)
        places = [f"stages.{index}.train" for index in range(len(stages))] if staged else ["train"]
        return [f"{place}.minutes={minutes * (part or 0) / total:.5g}" for place, part in zip(places, own, strict=True)]


class Table(BaseModel):
    """Trials on one teacher, measured alike.

    protocol: of `benchmarks.trials.protocols`.
    minutes: of training.
    trials: by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str
    minutes: Annotated[float, Field(gt=0)]
    trials: dict[str, Trial]

    @classmethod
    def read(cls, name: str) -> Self:
        """The table of that name, or of that file.

        Raises:
            UserError: there is none, or it does not fit.
        """
        file = Path(name) if name.endswith(".yaml") else HERE / f"{name}.yaml"
        if not file.is_file():
            raise UserError(f"there is no table {name}: use {', '.join(tables())}, or give a file")
        try:
            found = cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValidationError) as error:
            raise UserError(f"{file} is no table of trials: {error}") from error
        for protocol in (found.protocol, *(trial.protocol for trial in found.trials.values() if trial.protocol)):
            if protocol not in PROTOCOLS:
                raise UserError(f"{file} has the protocol {protocol}: use {', '.join(PROTOCOLS)}")
        return found

    def only(self, patterns: list[str]) -> dict[str, Trial]:
        """Those whose names fit one of the patterns, in the patterns' order; all without patterns.

        Raises:
            UserError: a pattern fits none.
        """
        found = {}
        for pattern in patterns or ["*"]:
            fitting = {name: trial for name, trial in self.trials.items() if fnmatchcase(name, pattern)}
            if not fitting:
                raise UserError(f"no trial is called {pattern}: use {', '.join(self.trials)}")
            found |= fitting
        return found


def tables() -> list[str]:
    """The names of the tables here."""
    return sorted(file.stem for file in HERE.glob("*.yaml"))
