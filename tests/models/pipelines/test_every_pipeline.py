"""Every pipeline class of Diffusers that takes the parts of a tiny one: each is accepted, or refused in words."""

import inspect

import diffusers
import pytest
from diffusers import DiffusionPipeline
from families import FAMILIES

from fastgen.errors import UserError
from fastgen.models.pipelines.arguments import parameters
from fastgen.models.pipelines.pipeline import Pipeline

POOLS = ("ddpm", "stable_diffusion", "sdxl")
OPTIONAL = {"safety_checker", "feature_extractor", "watermarker", "image_encoder", "requires_safety_checker"}
ACCEPTED = {
    "DDPMPipeline",
    "DDIMPipeline",
    "ConsistencyModelPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
}
pytestmark = pytest.mark.slow


def needed(kind: type) -> set[str]:
    """The parts that a pipeline cannot be built without."""
    takes = inspect.signature(kind.__init__).parameters.values()
    return {p.name for p in takes if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"} - OPTIONAL


def classes() -> dict[type, str]:
    """The classes, each with the first pool that has all the parts it needs; looked for when the test runs."""
    kinds = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")]
    stock = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)]
    parts = {pool: set(FAMILIES[pool].build().components) for pool in reversed(POOLS)}
    return {kind: pool for pool in parts for kind in stock if "unet" in needed(kind) <= parts[pool]}


def built(pool: str, kind: type) -> DiffusionPipeline:
    parts = FAMILIES[pool].build().components
    takes = inspect.signature(kind.__init__).parameters
    given = {name: parts.get(name) for name in takes if name in parts or name in OPTIONAL}
    given |= {name: False for name in takes if name == "requires_safety_checker"}
    return kind(**given)


def said_of(pool: str, kind: type) -> str:
    """How the class is refused; empty where it is accepted."""
    pipe = built(pool, kind)
    size = {name: value for name, value in FAMILIES[pool].size.items() if name in parameters(pipe)}
    try:
        assert Pipeline(pipe, size=size).shape
    except UserError as error:
        return str(error)
    return ""


def test_every_stock_pipeline_is_accepted_or_refused_by_name():
    said = {kind.__name__: said_of(pool, kind) for kind, pool in classes().items()}
    assert len(said) > 40
    assert {name for name, refusal in said.items() if not refusal} >= ACCEPTED
    assert not [(name, refusal) for name, refusal in said.items() if refusal and name not in refusal]
