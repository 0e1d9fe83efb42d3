"""What could fail only once training is over, done once before it: an export without its weights, a decoded sample."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..errors import UserError
from ..export.adapter import Adapter
from ..export.export import export
from ..export.lora import export_lora, known_keys
from ..export.scheduler_export import TOLERANCE, SchedulerExport
from ..export.unguided import unguided
from ..models.low_rank import DOWN_KEY, UP_KEY
from ..models.merging import lora_config
from ..models.pipelines.components import autoencoder_of
from ..models.pipelines.refusal import cause
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.watch import replaced
from ..models.quantised import unquantised
from ..models.targets import find_targets
from ..sampling.pictures import grid
from ..sampling.sampler import seeded_noise
from .release import makes_lora, notes_for
from .student import Student

_STOCK = "Load the teacher by the stock class of Diffusers that it belongs to (_class_name in model_index.json)"


def rehearse_export(student: Student) -> None:
    """Writes all of the exports but the weights of networks, and reads them as plain Diffusers would.

    Raises:
        UserError: the student could not be exported once it is trained.
    """
    config, name = student.config, type(student.pipeline.pipe).__name__
    try:
        network = unquantised(student.pipeline.start)
        written = unguided(student.pipeline.student(network, student.schedules[0].scheduler))
        with TemporaryDirectory() as folder, _without_weights(written):
            export(written, notes_for(student, guidance=1.0), Path(folder) / "student", student.schedules)
            for schedule in student.schedules:
                _check_readable(student, schedule, Path(folder) / "student" / schedule.folder)
            if makes_lora(config, student.pipeline):
                _export_lora(student, Path(folder) / "lora")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"a student of {name} could not be exported once it is trained: {cause(error)}") from error


def rehearse_pictures(student: Student, *, warn: Callable[[str], None]) -> bool:
    """Decodes one sample at the size of the run and makes a picture of it, if the run makes any.

    An autoencoder that does so in tiles only (Allegro's, or one with too little memory) does so from then on.

    Args:
        warn: called with what cannot be shown where only previews would show it, and with a warning of tiles.

    Returns:
        Whether pictures can be made.

    Raises:
        UserError: they cannot, and training or its measurements need them.
    """
    needed = _needs_pictures(student)
    if not needed and not student.config.log.previews:
        return False
    try:
        _show(student, warn)
    except Exception as error:
        if not needed:
            warn(f"there will be no previews, since a sample could not be shown ({cause(error)}); training goes on")
            return False
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the samples of {type(student.pipeline.pipe).__name__} cannot be decoded ({cause(error)}), and this run "
            "needs images: choose an objective without images, LPIPS, rewards or gan.pixels, and evaluate.protocol=none"
        ) from error
    return True


def _needs_pictures(student: Student) -> bool:
    config = student.config
    read = any(stage.objective.needs.pictures for stage in config.stages)
    return read or config.evaluate.protocol not in ("none", "digits")


def _show(student: Student, warn: Callable[[str], None]) -> None:
    vae = autoencoder_of(student.pipeline.pipe)
    try:
        return _show_one(student)
    except Exception as error:
        if not hasattr(vae, "enable_tiling"):
            raise
        whole = cause(error)
    vae.enable_tiling()
    _show_one(student)
    warn(f"the autoencoder works in tiles from here on, since it does not decode a sample whole ({whole})")


def _show_one(student: Student) -> None:
    sample = seeded_noise(range(1), student.pipeline.shape, student.device)()
    grid(student.pictures(sample) / 2 + 0.5, columns=1)


@contextmanager
def _without_weights(pipe: StockPipeline) -> Iterator[None]:
    """Within, the networks of a pipeline save their configs only."""
    with ExitStack() as within:
        for part in pipe.components.values():
            if isinstance(part, nn.Module) and hasattr(part, "save_pretrained"):
                within.enter_context(replaced(part, "save_pretrained", partial(_save_config, part)))
        yield


def _save_config(network: Any, folder: Any, **_: Any) -> None:
    if isinstance(network, ModelMixin):
        network.save_config(folder)
    else:
        network.config.save_pretrained(folder)


def _check_readable(student: Student, schedule: SchedulerExport, place: Path) -> None:
    """Refuses what plain Diffusers could not build again, or would sample otherwise."""
    index = DiffusionPipeline.load_config(place)
    parts = [index[name] for name in student.pipeline.pipe.components if index.get(name)]  # others are settings
    names = [index["_class_name"]] + [kind for library, kind in parts if library == "diffusers"]
    foreign = [name for name in names if not hasattr(diffusers, name)]
    if foreign:
        raise UserError(
            f"a student of {type(student.pipeline.pipe).__name__} could not be loaded by others: Diffusers has no "
            f"{' and no '.join(foreign)}. {_STOCK}"
        )
    kind: Any = type(schedule.scheduler)
    scheduler, n = kind.from_pretrained(place / "scheduler"), schedule.steps[0]
    stops = [stop.timestep for stop in student.stops[n]]
    found = student.pipeline.emitted(scheduler, n)
    if len(found) != n or max(abs(a - b) for a, b in zip(found, stops, strict=True)) > TOLERANCE:
        raise UserError(
            f"a student of {type(student.pipeline.pipe).__name__} could not be exported: the {type(scheduler).__name__}"
            f" read from its file stops at {found}, and {stops} would be trained"
        )


def _export_lora(student: Student, folder: Path) -> None:
    """A LoRA of rank one on the layers that will have one."""
    pipe, net = student.pipeline.pipe, student.pipeline.network
    layers = {name: net.get_submodule(name) for name in find_targets(net, student.config.lora.targets)}
    weights = {name + end: factor for name, layer in layers.items() for end, factor in _factors(layer).items()}
    adapter = Adapter(weights, lora_config(list(layers), 1, None))
    keys = student.config.lora.keys or known_keys(pipe, adapter.layers)
    export_lora(pipe, adapter, notes_for(student, guidance=1.0), folder, student.schedules, keys=keys)


def _factors(layer: Any) -> dict[str, Tensor]:
    given, made = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if given is None or made is None:
        made, given = layer.weight.shape[:2]
    kernel = layer.weight.shape[2:] if layer.weight.ndim > 2 else ()
    return {DOWN_KEY: torch.ones(1, given, *kernel), UP_KEY: torch.ones(made, 1, *(1 for _ in kernel))}
