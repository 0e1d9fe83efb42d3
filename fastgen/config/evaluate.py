"""The settings of a run's measurements."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class EvaluateConfig(BaseModel):
    """Quality: figures of a few samples, always of the same seeds, of the averaged weights while they train.

    Figures of few samples rank the measurements of one run; compare them with nothing else.

    protocol: none; digits, which needs no network and also reports after the export; or one of `fastgen eval`.
    every: images between measurements, null for a tenth of the stage's; each stage's start and end are measured too.
    num: samples of a measurement.
    extractor: weights of the protocol's network, as for `fastgen eval`; null takes the protocol's own.
    reference: real images or their statistics (.npz); null takes the training images.
    metric: the figure that decides, such as kid, recall or, for digits, accuracy; frechet is also known as fid.
    keep_best: a stage leaves its best weights, to the next stage and to the export, in place of its last.
    patience: measurements without a better one after which a stage ends early; null never ends it.
    teacher_steps, teacher_guidance: steps and guidance of the teacher's row in the digits' report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    protocol: Literal["none", "digits", "domain", "clean", "edm", "adm", "dinov2", "clip"] = "none"
    every: PositiveInt | None = None
    num: Annotated[int, Field(ge=20)] = 500
    extractor: str | None = None
    reference: Path | None = None
    metric: str = "frechet"
    keep_best: bool = True
    patience: PositiveInt | None = None
    teacher_steps: PositiveInt = 25
    teacher_guidance: float = 1.0

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> Self:
        if self.protocol in ("none", "digits") and (self.extractor or self.reference):
            raise ValueError(
                f"the protocol {self.protocol} looks with no network: remove `extractor` and `reference`, or choose a "
                "protocol of `fastgen eval`, such as domain"
            )
        if self.protocol == "none" and self.patience:
            raise ValueError("`patience` needs measurements: choose a `protocol`, or remove it")
        return self
