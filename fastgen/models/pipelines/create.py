"""A stock pipeline with random weights, from Diffusers class names and configs."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from ...errors import UserError, did_you_mean
from .loading import line
from .stock_pipeline import StockPipeline


def create(pipeline: str, parts: Mapping[str, Mapping[str, Any]], *, seed: int) -> StockPipeline:
    """Builds `pipeline` from its parts, each a mapping with a Diffusers `class` and that class's config.

    Raises:
        UserError: a name that Diffusers does not have, or a config that its class does not take.
    """
    torch.manual_seed(seed)
    built = {name: _part(name, dict(config)) for name, config in parts.items()}
    try:
        made: StockPipeline = _diffusers_class(pipeline)(**built)
    except Exception as error:  # whatever a constructor makes of parts that are not its own
        raise UserError(f"{pipeline} cannot be built from the parts {', '.join(parts)} ({line(error)})") from error
    return made


def _part(name: str, config: dict[str, Any]) -> Any:
    kind = _diffusers_class(str(config.pop("class", name)))
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    for key in config:
        if key not in known:
            hint = did_you_mean(key, known, otherwise=f"it takes {', '.join(sorted(known))}")
            raise UserError(f"teacher.new.parts.{name}: {kind.__name__} has no setting {key!r}; {hint}")
    try:
        return kind.from_config(config)
    except Exception as error:  # or of numbers that no network has
        raise UserError(
            f"teacher.new.parts.{name}: {kind.__name__} does not take this config ({line(error)})"
        ) from error


def _diffusers_class(name: str) -> Any:
    found = getattr(diffusers, name, None)
    if not isinstance(found, type):
        hint = did_you_mean(name, dir(diffusers), otherwise="its documentation names them")
        raise UserError(f"Diffusers {diffusers.__version__} has no class {name!r}; {hint}")
    return found
