"""Where a report comes from: files, seeds, machine, versions and settings."""

import platform
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .measure import Reference
from .networks.weights import file_sha256
from .session import Session

_VERSIONED = ("fastgen", "torch", "diffusers", "transformers", "torchvision", "numpy", "pillow")


def provenance(session: Session, real: Reference, started: datetime) -> dict[str, Any]:
    """As docs/metrics.md says."""
    options, device = session.options, session.device
    return {
        "reference": {
            "path": str(options.reference),
            "kind": "statistics" if options.reference_is_statistics else "images",
            "num": real.statistics.count,
            "skipped": len(real.seen.skipped) if real.seen else 0,
        },
        "seeds": [options.seed, options.seed + options.seeds * options.num - 1] if options.generated else None,
        "prompts": _file(options.prompts, session.request.prompts),
        "labels": _file(options.labels, session.request.labels),
        "processes": session.processes.count,
        "settings": {name: _plain(value) for name, value in asdict(options).items()},
        **circumstances(device, started),
    }


def circumstances(device: torch.device, started: datetime) -> dict[str, Any]:
    """Machine, versions, command and time of a measurement that ends now."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        "versions": {name: _version(name) for name in _VERSIONED},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }


def _file(path: Path | None, lines: tuple[Any, ...] | None) -> dict[str, Any] | None:
    return None if path is None else {"path": str(path), "sha256": file_sha256(path), "count": len(lines or ())}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
