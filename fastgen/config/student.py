"""What is exported of a run."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ..models.pipelines.student_network import NetworkSource
from ..models.walk import Sampler
from .strict import Strict

Steps = Annotated[int, Field(gt=0, le=1000)]
Side = Annotated[int, Field(gt=0, le=2**16)]
"""A length in pixels or frames."""


class NetworkConfig(Strict):
    """A network of the teacher's class that the generator has in the place of the teacher's, such as a smaller one.

    What the stock pipeline tells it and takes from it has to stay as it is.

    path: folder of a network or of a whole pipeline, as `save_pretrained` writes it, whose config says what it is;
        where it has weights, the generator starts from these.
    settings: instead of a path, settings that are others than those of the teacher's network, as its config has them.
        Weights that agree with the teacher's in name and shape start as these, and the others at random; so they do
        with a path without weights.
    """

    path: Path | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (not self.settings):
            raise ValueError("give either `path` (a folder with a config) or `settings` (changes of the teacher's)")
        return self

    @property
    def source(self) -> NetworkSource:
        """Where the network comes from."""
        return NetworkSource(self.path, self.settings)


class StudentConfig(Strict):
    """What is exported.

    steps: step counts that the student serves; the first is the default of `sample`.
    sampler: renoise (predict x0, add fresh noise) or ode (deterministic).
    height, width: size of its pictures in pixels; the pipeline's own default if not given.
    frames: frames of its videos; the pipeline's own default if not given.
    guidance: w for which a student with guidance as an input is made; others have none.
    shift: shift of a flow student's times towards the noise (SD3, arXiv:2403.03206, eq. 23); the teacher's own if
        not given. Where a pipeline in bf16 rounds its times, they are moved by up to 0.03 to times that it does not
        round.
    network: a network of another architecture than the teacher's; like that one if not given.
    """

    steps: Annotated[tuple[Steps, ...], Field(min_length=1)] = (1,)
    sampler: Sampler = "renoise"
    height: Side | None = None
    width: Side | None = None
    frames: Side | None = None
    guidance: Annotated[float, Field(ge=1, le=20)] | None = None
    shift: Annotated[float, Field(gt=0)] | None = None
    network: NetworkConfig | None = None

    @model_validator(mode="after")
    def _steps_are_declared_once(self) -> Self:
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps {list(self.steps)} names a count twice: declare each once")
        return self
