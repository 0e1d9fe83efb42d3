"""What checkpoints of earlier versions call otherwise, under its name of today."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from ..config.schema import OptimConfig, TrainConfig
from ..objectives import OBJECTIVES
from .checkpoint import Snapshot

ROLES = {"weight": "log_variance"}
"""Roles by the name that version 0.1 had for them."""
SETTINGS = {"guidance": "teacher_guidance"}
"""Settings of objectives likewise, where the objective has the new one."""


class _Renamed(Mapping[str, Mapping[str, Tensor]]):
    """Groups of tensors under their names of today, each read when it is asked for."""

    def __init__(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._groups, self._stored = groups, {_group(name): name for name in groups}

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return self._groups[self._stored[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def migrated(snapshot: Snapshot) -> Snapshot:
    """The snapshot as this version would have written it; one of its own is what it was."""
    state = dict(snapshot.state)
    state["optimizers"] = {ROLES.get(role, role): value for role, value in state["optimizers"].items()}
    state["fingerprint"] = _settings(state["fingerprint"])
    return Snapshot(_Renamed(snapshot.tensors), state)


def _group(name: str) -> str:
    """A group's name, such as "weight" or "optimizer.weight", by its role of today."""
    *kind, role = name.split(".")
    return ".".join([*kind, ROLES.get(role, role)])


def _settings(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The config of the run, whose stages name roles and an objective."""
    return {**fingerprint, "stages": [_stage(stage) for stage in fingerprint["stages"]]}


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    roles = {ROLES.get(role, role): settings for role, settings in stage["train"]["roles"].items()}
    return {**stage, "objective": _objective(stage["objective"]), "train": _train({**stage["train"], "roles": roles})}


def _train(settings: dict[str, Any]) -> dict[str, Any]:
    """With those that the version did not have yet at their defaults, at which they change nothing."""
    added = {name: value for name, value in TrainConfig(images=1).model_dump(mode="json").items() if name != "images"}
    optim = {**OptimConfig().model_dump(mode="json"), **settings.get("optim", {})}
    return {**added, **settings, "optim": optim}


def _objective(settings: dict[str, Any]) -> dict[str, Any]:
    kind = OBJECTIVES.get(settings["name"])
    known = {field.name for field in fields(kind)} if kind is not None else set()  # type: ignore[arg-type]
    renamed = {old: new for old, new in SETTINGS.items() if new in known}
    return {renamed.get(name, name): value for name, value in settings.items()}
