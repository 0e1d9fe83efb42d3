"""Why a pipeline cannot be a teacher, in words: the pipeline, the check, the cause and what may help.

Pipelines and networks are other people's code, which raises what it likes: within a check, all of it is a cause.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from diffusers.dependency_versions_table import deps

from ...errors import UserError
from .loading import line

PLAIN_LOOP = (
    "use a pipeline that calls its denoiser once per step with its scheduler's own sample, or write a Denoiser for it"
)
PLAIN_CALL = "use a pipeline that is asked by a prompt, a class label or nothing, and a size that it takes"


class CheckError(UserError):
    """A pipeline failed a check."""


def failure(name: str, check: str, measured: str, *, remedy: str = PLAIN_LOOP) -> CheckError:
    """A failed check of the pipeline of that name."""
    return CheckError(
        f"{name} cannot be used as a teacher: the self-test failed at '{check}': {measured}. To mend it, {remedy}"
    )


@contextmanager
def checking(name: str, check: str, *, remedy: str = PLAIN_LOOP) -> Iterator[None]:
    """Within, whatever is raised fails that check; a refusal in words passes.

    Raises:
        UserError: in place of any exception.
    """
    try:
        yield
    except Exception as error:
        raise raised(name, check, error, remedy=remedy) from error


def raised(name: str, check: str, error: Exception, *, remedy: str = PLAIN_LOOP) -> UserError:
    """The refusal that an exception within a check amounts to."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"there is too little memory to try {name} out: {line(error)}. Choose a smaller size (student.height, "
            "student.width), teacher.dtype=bf16, or a larger device"
        )
    package = _missing(error)
    helps = f"install what it needs: pip install {package}" if package else remedy
    return failure(name, check, cause(error), remedy=helps)


def cause(error: Exception) -> str:
    """An exception's kind and message on one line."""
    kind, said = type(error).__name__, line(error)
    return said if said == kind else f"{kind}: {said}"


def _missing(error: Exception) -> str | None:
    """The package that is not installed, if that is the cause: Diffusers' pipelines name some only when they run."""
    if not isinstance(error, ImportError | NameError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    wanted = isinstance(error, ImportError) or package in deps
    return package if wanted and find_spec(package) is None else None
