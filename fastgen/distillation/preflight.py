"""What a run would be refused for on this machine: looked for before anything is loaded, and by a dry run."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, model_info, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from ..config.schema import Config
from ..data.decode import Size
from ..disk import check_writable
from ..engine.dtypes import AUTOCAST
from ..engine.latents import recall
from ..errors import UserError
from ..models.pipelines.attention import check_attention
from ..models.pipelines.folders import INDEX, check_is_pipeline
from ..models.pipelines.fuse import lora_file
from ..models.pipelines.loading import (
    HUB_FAILURES,
    HUB_ID,
    check_weights,
    line,
    locate,
    variant_of,
    weight_files,
)
from ..models.pipelines.single_file import check_single_file
from ..models.pipelines.vision import eyes
from .initial import check_init
from .networks import check_built
from .output import check_output
from .plan import recipe_of
from .room import check_room

HUB_S = 10.0  # in which the hub answers, or is asked once more


def refusals(config: Config, *, recipes: Path, resume: bool = False) -> Iterator[str]:
    """Every reason why the run could not start here: device, output, data, teacher, LoRAs, size, references, rewards.

    Nothing but rewards and vision models is loaded, nothing downloaded or written; whether a hub id exists is asked of
    the cache, then of the hub.
    """
    checks: tuple[Callable[[Config], None], ...] = (
        check_device,
        lambda config: check_output(config, resume=resume),
        _check_data,
        check_init,
        _check_kernels,
        _check_evaluation,
        _check_rewards,
        _check_vision,
    )
    recipe = recipe_of(config, recipes)
    room = partial(check_room, recipes=recipes, resume=resume)
    built = partial(check_built, recipes=recipes)
    checks += (built,) if recipe else (_check_teacher, _check_loras, _check_size, room)
    for check in checks:
        try:
            check(config)
        except UserError as error:
            yield str(error)
    if recipe:
        yield from refusals(recipe.config, recipes=recipe.file.parent, resume=True)


def check_start(config: Config, *, recipes: Path, resume: bool) -> None:
    """Raises UserError with every reason why the run could not start here."""
    if found := list(dict.fromkeys(refusals(config, recipes=recipes, resume=resume))):
        raise UserError("\n  ".join(["the run cannot start here:", *found]) if len(found) > 1 else found[0])


def check_device(config: Config) -> None:
    """Raises UserError for a device or a tracker that is not here."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {config.device}, but torch sees no CUDA device: set device=cpu, or auto")
    for tracker in config.log.trackers:
        if find_spec(tracker) is None:
            raise UserError(
                f"log.trackers names {tracker}, which is not installed: pip install 'fastgen[{tracker}]', or remove it"
            )


def _check_data(config: Config) -> None:
    recall(config)
    config.data.check()
    _ = config.chosen
    if config.cache is not None and config.data.prompts is not None:
        check_writable(config.cache, "cache")


def _check_kernels(config: Config) -> None:
    cuda = torch.cuda.is_available() and config.device != "cpu"
    for stage in config.stages:
        dtype = AUTOCAST[stage.train.precision] or torch.float32
        check_attention(config.attention, device="cuda" if cuda else "cpu", dtype=dtype)


def _check_evaluation(config: Config) -> None:
    reference = config.evaluate.reference
    if reference is not None and not reference.exists():
        raise UserError(f"evaluate.reference is {reference}, which does not exist: correct the path, or remove it")
    if config.evaluate.protocol != "none":
        from .monitor import check_measured

        check_measured(config.evaluate)


def _check_rewards(config: Config) -> None:
    """Loads what the stages are rewarded by and lets go of it: a later stage would do so after hours."""
    several = [weighted for stage in config.stages for weighted in (stage.rewards, stage.judges) if weighted]
    parts = [part for weighted in several for part in weighted.parts]
    for number, part in enumerate(parts):
        if part not in parts[:number]:
            part.load(torch.device("cpu"))


def _check_vision(config: Config) -> None:
    """Loads what discriminators see decoded samples by, and lets go of it."""
    specs = (stage.discriminator for stage in config.stages)
    for network, blocks in dict.fromkeys((spec.network, spec.blocks) for spec in specs):
        if network is not None:
            eyes(network, blocks, torch.device("cpu"))


def _check_teacher(config: Config) -> None:
    source = config.teacher.path
    if source is None:
        return
    if Path(source).exists() or not HUB_ID.fullmatch(source):
        if (folder := locate(source)).is_dir():
            check_is_pipeline(folder)
            files = weight_files(folder, variant_of(folder, config.teacher.variant))
            check_weights(*(file for several in files.values() for file in several))
        else:
            check_single_file(folder)
    else:
        _check_hub("teacher.path", source, INDEX, config.teacher.revision)


def _check_loras(config: Config) -> None:
    for lora in config.teacher.loras:
        if Path(lora.path).exists() or not HUB_ID.fullmatch(lora.path) or Path(lora.path).suffix:
            lora_file(lora)
        else:
            _check_hub("teacher.loras", lora.path, lora.file, None)


def _check_hub(setting: str, name: str, file: str | None, revision: str | None) -> None:
    """Asks for the headers of a file alone; where it is not named, whether there is such a repository."""
    try:
        if file is not None and isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return
        if file is None:
            model_info(name, revision=revision, timeout=HUB_S)
        else:
            get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=HUB_S)
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{setting} is {name}, which is not here, and the hub has no such {file or 'model'}: correct it"
        ) from error
    except HUB_FAILURES as error:
        raise UserError(
            f"{setting} is {name}, which is neither here nor in the hub's cache, and the hub could not be asked "
            f"({line(error)}): give a folder, or go online"
        ) from error


def _check_size(config: Config) -> None:
    """Asks the pipeline's own check of its call, which needs no weights, about the student's size and all buckets'."""
    student, folder = config.student, Path(config.teacher.path or "")
    if not (folder / INDEX).is_file():
        return
    if student.height or student.width:
        height, width = student.height or student.width, student.width or student.height
        _check_one(folder, {"height": height, "width": width}, "student.height and student.width are no size")
    shapes: tuple[Size, ...] = config.data.shapes
    for height, width in shapes if len(shapes) > 1 else ():
        _check_one(
            folder, {"height": height, "width": width}, f"the bucket of {height} x {width} (data.buckets) is no size"
        )


def _check_one(folder: Path, size: Mapping[str, int | None], called: str) -> None:
    try:
        check = _skeleton(folder).check_inputs
        takes = inspect.signature(check).parameters
        required = {name: None for name, one in takes.items() if one.default is inspect.Parameter.empty}
        check(**{**required, "prompt": "a", **{name: value for name, value in size.items() if name in takes}})
    except ValueError as error:
        if "height" in str(error):
            raise UserError(f"{called} of this teacher: {line(error)}") from error
    except Exception:  # a pipeline without such a check, or whose check reads more than sizes
        return


def _skeleton(folder: Path) -> Any:
    """The pipeline with the configs of its networks, none of their weights, and nothing that encodes text."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if isinstance(entry, list):
            library, kind = entry
            parts[name] = _without_weights(folder, name, kind) if library == "diffusers" else None
    kind = getattr(diffusers, index["_class_name"])
    takes = inspect.signature(kind.__init__).parameters
    settings = {name: value for name, value in index.items() if name in takes and not isinstance(value, list)}
    return kind(**{**settings, **parts})


def _without_weights(folder: Path, name: str, kind: str) -> Any:
    """A part of a pipeline of its config alone; a network's weights are nowhere."""
    made = getattr(diffusers, kind)
    with torch.device("meta") if issubclass(made, torch.nn.Module) else nullcontext():
        return made.from_config(made.load_config(folder, subfolder=name))
