"""An evaluation called from Python: the options of the command line, by keyword."""

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike, fspath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fastgen.errors import UserError, did_you_mean

from .evaluate import evaluate as measure
from .metrics_json import Report
from .networks.clip import Reward
from .options import Options


def evaluate(*, rewards: Mapping[str, Reward] | None = None, **settings: Any) -> Report | None:
    """Teacher and student beside each other, as `fastgen eval` measures them.

    Args:
        rewards: functions (uint8 images [B, 3, H, W], prompts) -> [B] by name, each a figure of its own.
        settings: fields of `eval.options.Options`: `reference`, which is required, `student`, `teacher`, `steps` ...

    Returns:
        The report, which is also in the folder `out`; None on all but the first of several processes.

    Raises:
        UserError: settings that do not exist or contradict each other, an unusable file or model, an earlier report.
    """
    known = [field.name for field in fields(Options)]
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"it has {', '.join(known)}")
            raise UserError(f"an evaluation has no setting {name!r}; {hint}")
    plain = {name: fspath(value) if isinstance(value, PathLike) else value for name, value in settings.items()}
    try:
        options = TypeAdapter(Options).validate_python(plain)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"an evaluation does not take these values: {wrong}. See eval.options.Options") from error
    return measure(options, rewards=rewards)
