"""Who is distilled: a pipeline that exists, or a network that is yet to be trained."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from ..models.pipelines.source import Dtype, LoRAFile, TeacherSource
from .strict import Strict


class NewNetworkConfig(Strict):
    """A pipeline with random weights, to be trained by `pretrain`.

    pipeline: name of its class in Diffusers.
    parts: mapping of each part's name to its config, with the part's class under `class`.
    """

    pipeline: str
    parts: dict[str, dict[str, Any]]


class TeacherConfig(Strict):
    """Who is distilled.

    path: folder or hub id of a Diffusers pipeline, or a single-file checkpoint (.safetensors).
    config: folder or hub id of a pipeline with the single file's architecture; Diffusers recognises common ones.
    loras: LoRAs fused into the pipeline, each a `path`, a `weight` and, where there are several, a `file`.
    dtype: dtype of the weights; auto follows the run's precision.
    variant, revision: which weight files (such as fp16), and which branch, tag or commit on the hub.
    negative_prompt: prompt that guidance leads away from, in place of an empty one.
    recipe: config that trains the teacher if its folder does not exist yet, relative to this config.
    new: instead of a path, a network with random weights (objective `pretrain`).
    num_classes, null_label: number of real classes, and the label of no class, of a class-conditional pipeline whose
        folder does not say them.
    """

    path: str | None = None
    config: str | None = None
    loras: tuple[LoRAFile, ...] = ()
    dtype: Dtype = "auto"
    variant: str | None = None
    revision: str | None = None
    negative_prompt: str | None = None
    recipe: Path | None = None
    new: NewNetworkConfig | None = None
    num_classes: PositiveInt | None = None
    null_label: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.new is None):
            raise ValueError("give either `path` (a pipeline to distil) or `new` (a network to pretrain)")
        return self

    @model_validator(mode="after")
    def _new_networks_have_no_files(self) -> Self:
        for name in ("config", "loras", "variant", "revision", "recipe"):
            if self.new is not None and getattr(self, name):
                raise ValueError(f"`{name}` belongs to a pipeline that is loaded: remove it beside `new`")
        return self

    @property
    def source(self) -> TeacherSource:
        """Where the pipeline at `path` comes from."""
        assert self.path is not None
        return TeacherSource(
            path=self.path,
            config=self.config,
            loras=self.loras,
            dtype=self.dtype,
            variant=self.variant,
            revision=self.revision,
        )
