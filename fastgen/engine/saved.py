"""What a checkpoint's state.json holds, typed: a foreign one, or one of another version, is an error in words."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError

from ..errors import CheckpointError

FORMAT = 2
"""Version of what is in a checkpoint; 1 is that of those that do not say one."""


class ForeignStateError(CheckpointError):
    """A state.json does not have the form that it has in a checkpoint.

    Args:
        file: the state.json.
        faults: what is wrong with it.
    """

    def __init__(self, file: Path, faults: str) -> None:
        super().__init__(
            f"{file} does not hold the state of a run ({faults}): it was edited, or another program wrote it; use "
            "another checkpoint of the run, or start in another output folder (out=...)"
        )


class _Saved(BaseModel):
    """Numbers are not read from texts; what is not known here is somebody else's, and passed on."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Position(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cycle: NonNegativeInt
    images: NonNegativeInt
    drawn: NonNegativeInt
    seconds: NonNegativeFloat


class _Parameter(_Saved):
    shape: list[NonNegativeInt]
    scalars: dict[str, Any]


class _Group(_Saved):
    settings: dict[str, Any]
    parameters: list[_Parameter]


class _Optimizer(_Saved):
    groups: list[_Group]
    updates: NonNegativeInt


class _Best(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: float
    images: NonNegativeInt


class _Quality(_Saved):
    of: str
    best: _Best | None
    since: NonNegativeInt


class _Boundary(BaseModel):
    """Figures as texts, which may say that they are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True)

    before: NonNegativeInt
    figures: dict[str, Annotated[str, AfterValidator(float)]]


class _Objective(_Saved):
    name: str


class _Train(_Saved):
    images: NonNegativeInt
    minutes: NonNegativeFloat | None = None
    roles: dict[str, dict[str, Any]]


class _Stage(_Saved):
    objective: _Objective
    train: _Train


class _Data(_Saved):
    source: str


class _Fingerprint(_Saved):
    teacher: dict[str, Any]
    data: _Data
    stages: Annotated[list[_Stage], Field(min_length=1)]


class _State(_Saved):
    stage: NonNegativeInt
    position: _Position
    optimizers: dict[str, _Optimizer]
    scalers: dict[str, dict[str, Any]]
    ema_updates: NonNegativeInt | None
    fingerprint: _Fingerprint
    quality: _Quality | None = None
    boundary: _Boundary | None = None
    made_of: dict[str, dict[str, str]] = {}


def check_state(state: object, file: Path) -> int:
    """The format that a state.json is of, once it is known to have that form.

    Raises:
        CheckpointError: it is of a later version.
        ForeignStateError: it is no state of a run.
    """
    found = state.get("format", 1) if isinstance(state, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(
            f"{file} is of format {found}, and this version of fastgen reads formats up to {FORMAT}: resume with the "
            "version that wrote it, or start in another output folder (out=...)"
        )
    try:
        _State.model_validate(state)
        stages = len(state["fingerprint"]["stages"])  # type: ignore[index]
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()]
        raise ForeignStateError(file, "; ".join(faults[:5])) from None
    if type(found) is not int or found < 1:
        raise ForeignStateError(file, f"format: {found!r} is no version")
    if state["stage"] >= stages:  # type: ignore[index]
        raise ForeignStateError(file, f"stage: it stands in number {state['stage']} of {stages}")  # type: ignore[index]
    return found
