"""What a stock pipeline folder cannot say about a student, kept beside it in `fastgen.json`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from ...errors import UserError
from ...files import atomic_json
from ..walk import Sampler

Arguments = dict[str, bool | int | FiniteFloat]
"""Of a stock call, by its own names."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Stop:
    """One stop of a student's sampler as it was trained: x_t = alpha x0 + sigma eps, output = p x0 + q eps.

    Attributes:
        timestep: the scheduler's timestep.
        time: process time in [0, 1], 1 = noisiest.
        alpha, sigma: signal and noise level of the process there.
        p, q: coefficients of the network's parameterisation there.
    """

    timestep: FiniteFloat
    time: FiniteFloat
    alpha: FiniteFloat
    sigma: FiniteFloat
    p: FiniteFloat
    q: FiniteFloat


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TeacherLoRA:
    """A LoRA that the teacher was made with, which lies below the student's own.

    Attributes:
        place: a hub id, or a folder: as the config named it where that was relative, else its name alone.
        hub: whether it is a hub id.
        file: the weight file in it.
        weight: factor of the LoRA, as in `set_adapters`.
        sha256: hash of the file.
    """

    place: str
    hub: bool = False
    file: str
    weight: FiniteFloat = 1.0
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Notes:
    """How a student wants to be sampled and where it came from.

    Attributes:
        steps: sampler steps the student was trained for; the first is the default.
        guidance: w of uncond + w (cond - uncond), 1 = none; None leaves the pipeline's own default.
        arguments: arguments of the stock call besides prompt, label and steps: size, and guidance by its own name.
        num_classes: real classes, labels 0 .. num_classes - 1; None without class labels.
        null_label: the label that means "no class"; never drawn.
        objective: name of the last training objective.
        teacher: the hub id or path that was distilled; of a path of one machine alone only the name.
        hub: whether `teacher` is a hub id; None in notes that do not say.
        variant, revision: the teacher's variant of weight files and revision on the hub, as it was loaded.
        loras: LoRAs that the teacher was made with, the lowest first.
        licence: front matter `license...` of the teacher's model card.
        metrics: what was measured of the student, name -> value.
        unchanged: whether no weight differs from those that training began with.
        sampler: sampler that was trained for: renoise or ode.
        stops: step count -> where its sampler stops and what x_t and the network mean there.
    """

    FILE: ClassVar[str] = "fastgen.json"

    format: Literal[1] = 1
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    guidance: FiniteFloat | None = 1.0
    arguments: Arguments = Field(default_factory=dict)
    num_classes: PositiveInt | None = None
    null_label: NonNegativeInt | None = None
    objective: str | None = None
    teacher: str | None = None
    hub: bool | None = None
    variant: str | None = None
    revision: str | None = None
    loras: tuple[TeacherLoRA, ...] = ()
    licence: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    unchanged: bool = False
    sampler: Sampler | None = None
    stops: dict[PositiveInt, tuple[Stop, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _null_label_is_no_class(self) -> Self:
        if self.num_classes is not None and self.null_label is not None and self.null_label < self.num_classes:
            raise ValueError(f"null_label {self.null_label} lies among the {self.num_classes} real classes")
        return self

    @classmethod
    def read(cls, folder: Path) -> "Notes | None":
        """The notes of a pipeline folder, None where there are none.

        Raises:
            UserError: the file is there but malformed, or of a later format.
        """
        path = Path(folder) / cls.FILE
        if not path.exists():
            return None
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(
                f"{path} cannot be read as the notes of a student (format 1): {place}: {first['msg']}. "
                "Export the student again, or delete the file to sample the folder as any other pipeline."
            ) from error

    def write(self, folder: Path) -> None:
        """Write `fastgen.json` into a pipeline folder, whole or not at all."""
        atomic_json(Path(folder) / self.FILE, asdict(self))
