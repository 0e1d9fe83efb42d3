"""What checkpoints of earlier versions call otherwise, under its name of today."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from torch import Tensor

from ..config.schema import Config, StageConfig
from ..config.teacher import TeacherConfig
from ..config.train import TrainConfig
from ..config.yaml_file import VOLATILE
from ..data import SOURCES
from ..objectives import OBJECTIVES
from ..objectives.parts.gan import NO_GAN
from .checkpoint import STATE, Snapshot
from .saved import FORMAT, check_state

ROLES = {"weight": "log_variance"}
"""Roles by the name that format 1 had for them."""
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


def migrated(snapshot: Snapshot, folder: Path) -> Snapshot:
    """The snapshot as this version would have written it; one of its own is what it was.

    Args:
        folder: the checkpoint, for errors to name.

    Raises:
        CheckpointError: it is of a later version, or its state is not that of a run.
    """
    found = check_state(snapshot.state, folder / STATE)
    if found == 1:
        snapshot = _of_format_1(snapshot)
    fingerprint = _completed(snapshot.state["fingerprint"])
    return Snapshot(snapshot.tensors, {**snapshot.state, "format": FORMAT, "fingerprint": fingerprint})


def _of_format_1(snapshot: Snapshot) -> Snapshot:
    """Migrates format 1, in which the role of a log-variance and the teacher's guidance had other names."""
    state = dict(snapshot.state)
    state["optimizers"] = {ROLES.get(role, role): value for role, value in state["optimizers"].items()}
    stages = [_renamed_in(stage) for stage in state["fingerprint"]["stages"]]
    state["fingerprint"] = {**state["fingerprint"], "stages": stages}
    return Snapshot(_Renamed(snapshot.tensors), state)


def _group(name: str) -> str:
    """A group's name, such as "weight" or "optimizer.weight", by its role of today."""
    *kind, role = name.split(".")
    return ".".join([*kind, ROLES.get(role, role)])


def _renamed_in(stage: dict[str, Any]) -> dict[str, Any]:
    settings = stage["objective"]
    kind = OBJECTIVES.get(settings["name"])
    known = {field.name for field in fields(kind)} if kind is not None else set()  # type: ignore[arg-type]
    renamed = {old: new for old, new in SETTINGS.items() if new in known}
    objective = {renamed.get(name, name): value for name, value in settings.items()}
    roles = {ROLES.get(role, role): value for role, value in stage["train"]["roles"].items()}
    return {**stage, "objective": objective, "train": {**stage["train"], "roles": roles}}


def _completed(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint with settings that its version did not know yet, at defaults that leave the run as it was."""
    known = {name: value for name, value in _defaults(Config).items() if name not in VOLATILE}
    data, stages = fingerprint["data"], fingerprint["stages"]
    told = {
        "teacher": _over(_defaults(TeacherConfig), fingerprint["teacher"]),
        "data": [_completed_data(one) for one in data] if isinstance(data, list) else _completed_data(data),
        "stages": [_completed_stage(stage) for stage in stages],
    }
    return dict(_over(known, {**fingerprint, **told}))


def _completed_data(data: dict[str, Any]) -> Any:
    return _over(_defaults(SOURCES.get(data["source"])), data)


def _completed_stage(stage: dict[str, Any]) -> dict[str, Any]:
    objective = _read(_over(_defaults(OBJECTIVES.get(stage["objective"]["name"])), stage["objective"]))
    train = _over(_defaults(TrainConfig), stage["train"])
    return {**_over(_defaults(StageConfig), stage), "objective": objective, "train": train}


def _read(objective: dict[str, Any]) -> dict[str, Any]:
    """The objective's settings; what nothing read of an adversary of weight 0 was no setting of the run."""
    gan = objective.get("gan")
    return (
        {**objective, "gan": to_jsonable_python(NO_GAN)} if isinstance(gan, dict) and not gan["weight"] else objective
    )


def _defaults(kind: Any) -> dict[str, Any]:
    """Settings that need not be given, of a model or of a dataclass; none of a class that is not ours."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        optional = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
        found = {name: field.get_default(call_default_factory=True) for name, field in optional.items()}
    else:
        found = {field.name: field.default for field in fields(kind) if field.default is not MISSING} if kind else {}
    return dict(to_jsonable_python(found))


def _over(defaults: Any, saved: Any) -> Any:
    """The saved settings, completed at every depth by the defaults of those that were not saved."""
    if not (isinstance(defaults, dict) and isinstance(saved, dict)):
        return saved
    return {**defaults, **{name: _over(defaults.get(name), value) for name, value in saved.items()}}
