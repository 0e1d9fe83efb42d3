"""Where a report comes from: files, seeds, machine, versions and settings."""

import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import torch

from fastgen.files import sha256_file
from fastgen.redaction import redacted, within

from .measure import Reference
from .metrics_json import LineFile, Provenance, RealImages
from .rows import Row
from .session import Session

_VERSIONED = ("fastgen", "torch", "diffusers", "transformers", "torchvision", "numpy", "pillow")


class Circumstances(TypedDict):
    """The part of a provenance that is of any measurement."""

    device: str
    versions: dict[str, str]
    command: str
    started: str
    seconds: float


def provenance(session: Session, real: Reference, rows: Sequence[Row], started: datetime) -> Provenance:
    """The provenance of a report with these rows."""
    options, device = session.options, session.device
    return Provenance(
        reference=RealImages(
            path=real.origin.path,
            kind=real.origin.kind,
            num=real.statistics.count,
            skipped=len(real.seen.skipped) if real.seen else 0,
        ),
        seeds=(options.seed, options.seed + options.seeds * options.num - 1)
        if any(row.role != "real" for row in rows)
        else None,
        prompts=_file(options.prompts, session.request.prompts),
        labels=_file(options.labels, session.request.labels),
        processes=session.processes.count,
        settings=within({name: _plain(value) for name, value in asdict(options).items()}),
        **circumstances(device, started),
    )


def circumstances(device: torch.device, started: datetime) -> Circumstances:
    """Machine, versions, command and time of a measurement that ends now."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        "versions": {name: _version(name) for name in _VERSIONED},
        "command": redacted(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }


def _file(path: Path | None, lines: tuple[Any, ...] | None) -> LineFile | None:
    return None if path is None else LineFile(str(path), sha256_file(path), len(lines or ()))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
