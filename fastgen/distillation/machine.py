"""What this machine brings to a run: packages, kernels, GPUs, memory, disks and the hub, one finding each."""

import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, get_token, whoami
from packaging.requirements import Requirement

from ..disk import check_writable, standing
from ..errors import UserError
from ..models.pipelines.loading import HUB_FAILURES, answer_within, line

GIB = 2**30
HUB_S = 5.0
LITTLE = 10 * GIB
"""Free bytes under which checkpoints and exports of a large pipeline have no room."""
EXTRAS = {
    "xformers": "attention=xformers",
    "wandb": "log.trackers=[wandb]",
    "mlflow": "log.trackers=[mlflow]",
    "swanlab": "log.trackers=[swanlab]",
    "datasets": "data.source=datasets, of the Hugging Face hub",
    "demo": "fastgen demo (Gradio)",
    "quantised": "lora.base=int8 or nf4 (bitsandbytes)",
    "docs": "the documentation as a site (mkdocs)",
    "dev": "the tests, style and types",
}
"""What optional dependencies are for, by their names."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        section: heading that it stands under.
        value: what was found.
        problem: why no run could start here, with the remedy; None where it could.
    """

    section: str
    name: str
    value: str
    problem: str | None = None


def examined(out: Path) -> Iterator[Finding]:
    """Everything about this machine that a run depends on; nothing is written, and nothing asked but the hub."""
    yield from _packages()
    yield from _extras()
    yield from _devices()
    yield from _kernels()
    yield from _memory(out)
    yield _hub()


def _packages() -> Iterator[Finding]:
    yield Finding("packages", "python", platform.python_version())
    yield Finding("packages", "fastgen", metadata.version("fastgen"))
    for requirement in _required(None):
        yield _package("packages", requirement)


def _extras() -> Iterator[Finding]:
    for extra in metadata.metadata("fastgen").get_all("Provides-Extra") or ():
        needed, purpose = _required(extra), EXTRAS.get(extra, extra)
        missing = [one.name for one in needed if _problem(one) is not None]
        state = f"missing {', '.join(missing)}: pip install 'fastgen[{extra}]'" if missing else "installed"
        yield Finding("extras", extra, f"{purpose}; {state}")


def _required(extra: str | None) -> list[Requirement]:
    """Fastgen's requirements, or those that an extra adds."""
    found = [Requirement(text) for text in metadata.requires("fastgen") or ()]
    wanted = {"extra": extra or ""}
    own = [one for one in found if one.marker is None]
    added = [one for one in found if one.marker is not None and one.marker.evaluate(wanted)]
    return own if extra is None else added


def _package(section: str, requirement: Requirement) -> Finding:
    try:
        value = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        value = "missing"
    return Finding(section, requirement.name, value, _problem(requirement))


def _problem(requirement: Requirement) -> str | None:
    wanted = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed: {wanted}"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is not {requirement.specifier}: {wanted}"


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("devices", "GPU", f"none that torch {torch.__version__} sees; small runs train on the CPU")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        half = "bf16" if about.major >= 8 else "fp16 only (train.precision=fp16)"
        value = (
            f"{about.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, compute {about.major}.{about.minor}, {half}"
        )
        yield Finding("devices", f"cuda:{index}", value)
    yield Finding(
        "devices", "CPU", f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, {platform.machine()}"
    )


def _kernels() -> Iterator[Finding]:
    yield Finding("kernels", "CUDA of torch", torch.version.cuda or "none")
    yield Finding("kernels", "triton", _version("triton") or "none: train.compile and fused kernels are left out")
    flash = torch.cuda.is_available() and torch.backends.cuda.is_flash_attention_available()
    yield Finding("kernels", "flash attention", "of torch" if flash else "needs a CUDA GPU")
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    yield Finding("kernels", "cudnn", str(cudnn or "none"))
    yield Finding("kernels", "xformers", _version("xformers") or "none")


def _version(package: str) -> str | None:
    return metadata.version(package) if find_spec(package) is not None else None


def _memory(out: Path) -> Iterator[Finding]:
    main = psutil.virtual_memory()
    yield Finding("memory and disks", "main memory", f"{main.available / GIB:.1f} of {main.total / GIB:.1f} GiB free")
    for name, place in (("runs", out), ("hub's cache", Path(constants.HF_HUB_CACHE))):
        free = shutil.disk_usage(standing(place)).free
        small = f"; {LITTLE // GIB} GiB and more are needed by large pipelines" if free < LITTLE else ""
        try:
            check_writable(place, name)
            problem = None
        except UserError as error:
            problem = str(error)
        yield Finding("memory and disks", name, f"{free / GIB:.1f} GiB free at {place}{small}", problem)


def _hub() -> Finding:
    token = get_token()
    if token is None:
        return Finding("hub", "login", "none: gated pipelines and pushes need one (`hf auth login`, or HF_TOKEN)")
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "login", "there is a token; HF_HUB_OFFLINE is set, so the hub was not asked")
    answer_within(HUB_S)
    try:
        name = str(whoami(token=token)["name"])
    except HUB_FAILURES as error:
        said = re.sub(re.escape(token), "***", line(error))
        return Finding("hub", "login", f"there is a token, but the hub does not confirm it ({said})")
    return Finding("hub", "login", name)
