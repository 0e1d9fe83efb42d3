"""Distil any Diffusers pipeline into a stock pipeline that samples in 1-4 steps.

The public names; each is imported from its room when it is first asked for, so that `import fastgen` costs nothing.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.call import evaluate

    from .config.schema import Config
    from .config.shipped import shipped
    from .config.yaml_file import load as load_config
    from .data import SOURCES
    from .distillation.steps import (
        batches,
        build_roles,
        build_stage,
        distil,
        export_student,
        load_teacher,
        verify,
    )
    from .distillation.student import Student
    from .engine.stage import Stage
    from .errors import UserError
    from .models.calls import guided, look, through
    from .models.pipelines.pipeline import Pipeline
    from .models.roles import Roles
    from .objectives import OBJECTIVES, Batch, Needs, Objective, Terms
    from .sampling.order import sample

    __version__: str

__all__ = [
    "OBJECTIVES",
    "SOURCES",
    "Batch",
    "Config",
    "Needs",
    "Objective",
    "Pipeline",
    "Roles",
    "Stage",
    "Student",
    "Terms",
    "UserError",
    "__version__",
    "batches",
    "build_roles",
    "build_stage",
    "distil",
    "evaluate",
    "export_student",
    "guided",
    "load_config",
    "load_teacher",
    "look",
    "sample",
    "shipped",
    "through",
    "verify",
]

_HOMES = {  # public name -> module, and its name there where that differs
    "OBJECTIVES": "fastgen.objectives",
    "SOURCES": "fastgen.data",
    "Batch": "fastgen.objectives",
    "Config": "fastgen.config.schema",
    "Needs": "fastgen.objectives",
    "Objective": "fastgen.objectives",
    "Pipeline": "fastgen.models.pipelines.pipeline",
    "Roles": "fastgen.models.roles",
    "Stage": "fastgen.engine.stage",
    "Student": "fastgen.distillation.student",
    "Terms": "fastgen.objectives",
    "UserError": "fastgen.errors",
    "batches": "fastgen.distillation.steps",
    "build_roles": "fastgen.distillation.steps",
    "build_stage": "fastgen.distillation.steps",
    "distil": "fastgen.distillation.steps",
    "evaluate": "eval.call",
    "export_student": "fastgen.distillation.steps",
    "guided": "fastgen.models.calls",
    "load_config": "fastgen.config.yaml_file:load",
    "load_teacher": "fastgen.distillation.steps",
    "look": "fastgen.models.calls",
    "sample": "fastgen.sampling.order",
    "shipped": "fastgen.config.shipped",
    "through": "fastgen.models.calls",
    "verify": "fastgen.distillation.steps",
}

if not TYPE_CHECKING:  # a type checker knows the names from above, and no others

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return metadata.version("fastgen")
        if name not in _HOMES:
            known = ", ".join(__all__)
            raise AttributeError(f"module 'fastgen' has no attribute {name!r}; its public names are {known}")
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(import_module(module), attribute or name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
