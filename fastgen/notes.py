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

from .errors import UserError
from .files import atomic_json


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Notes:
    """How a student wants to be sampled and where it came from.

    Attributes:
        steps: sampler steps the student was trained for; the first is the default.
        guidance: w of uncond + w (cond - uncond), 1 = none; None leaves the pipeline's own default.
        num_classes: real classes, labels 0 .. num_classes - 1; None without class labels.
        null_label: the label that means "no class"; never drawn.
        objective: name of the last training objective.
        teacher: the folder or hub id that was distilled.
    """

    FILE: ClassVar[str] = "fastgen.json"

    format: Literal[1] = 1
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    guidance: FiniteFloat | None = 1.0
    num_classes: PositiveInt | None = None
    null_label: NonNegativeInt | None = None
    objective: str | None = None
    teacher: str | None = None

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
