"""Where a run's generator starts: at the teacher, or at the weights of an earlier student, which is all that it takes.

Moments, the fake score and whoever else there is start as always, unless the first stage's `carry` says otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.schema import Config
from ..engine import checkpoint
from ..engine.earlier import Earlier, earlier_of
from ..engine.fitting import listed
from ..engine.lineage import Weights
from ..engine.log import RunLog
from ..engine.materials import materials
from ..engine.migration import migrated
from ..errors import UserError
from ..export.stops import difference, stops_of
from ..export.unguided import SILENT
from ..models.experts import networks_in
from ..models.low_rank import DOWN_KEY, UP_KEY, draw, factor_shapes, scale_of
from ..models.merging import merge
from ..models.pipelines.components import NETWORKS, SECOND, denoisers_of, network_of
from ..models.pipelines.finite import check_finite
from ..models.pipelines.fuse import Place, places_in
from ..models.pipelines.heads import StepHeads
from ..models.pipelines.loading import variant_of, weight_files
from ..models.pipelines.notes import Notes
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.student_network import alike
from ..models.roles import EMBEDDED, without_embeddings
from ..models.scalars import scalars_in
from ..models.targets import find_targets, one_dimensional
from ..seeds import seed_of
from .student import Student

Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors by name."""

_OWN = ("net.", "adapter.")  # what the names of a role's own weights begin with in a checkpoint
_NO_ADAPTER = (
    "init is {}, a whole network, and under sharing=lora the generator is an adapter on the teacher: give its LoRA, or "
    "set sharing=full"
)
_REMEDY = "give a student of the same teacher, or start from the teacher (init: null)"


def initial(student: Student, log: RunLog | None) -> Weights:
    """What the first stage of a run goes on from, as a stage leaves it to the next one: nothing without `init`.

    Args:
        log: is told what is taken.

    Raises:
        UserError: the weights are of another network, of a teacher that means other things by its times and outputs,
            or of a kind that this run's generator is not.
    """
    config = student.config
    if config.init is None:
        if log is not None and config.student.network is not None:
            log.note(stage=0, cycle=0, note=_told_of_its_own(student))
        return {}
    earlier = earlier_of(config.init)
    _check_kind(earlier, student.pipeline)
    if earlier.kind == "checkpoint":
        weights, adapted = _of_checkpoint(earlier, student)
    else:
        adapted = earlier.kind == "LoRA"
        weights = _of_pipeline(earlier.folder, student.pipeline) if not adapted else _of_lora(earlier, student)
    if config.sharing == "lora" and not adapted:
        raise UserError(_NO_ADAPTER.format(config.init))
    network = student.pipeline.start
    wanted = _adapter(student, network) if config.sharing == "lora" else network.state_dict()
    _check_same(_shapes_of(wanted), _shapes_of(without_embeddings(weights)), config)
    if log is not None:
        log.note(stage=0, cycle=0, note=_told(earlier))
    return {"generator": weights}


def check_init(config: Config) -> None:
    """Raises UserError for what can be seen of `init` before anything is loaded: what it is, and shapes in files."""
    if config.init is None:
        return
    earlier = earlier_of(config.init)
    if earlier.kind != "pipeline":
        return
    if config.sharing == "lora":
        raise UserError(_NO_ADAPTER.format(config.init))
    if config.student.network is not None:
        return  # whose shapes are known once it is built
    if config.teacher.path is not None and (teacher := Path(config.teacher.path)).is_dir():
        wanted, found = _shapes(teacher, config.teacher.variant), _shapes(earlier.folder)
        silent = {name for name in found if name.endswith(SILENT)} - wanted.keys()
        _check_same(wanted, {name: shape for name, shape in found.items() if name not in silent}, config)


def _shapes(folder: Path, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a pipeline's denoisers, read from the headers of its files."""
    files = weight_files(folder, variant_of(folder, variant))
    found: dict[str, tuple[int, ...]] = {}
    for part in (*NETWORKS, SECOND):
        for file in files.get(part, ()):
            with safe_open(file, framework="pt") as content:
                names = list(content.keys())
                found |= {f"{part}.{name}": tuple(content.get_slice(name).get_shape()) for name in names}
    return found


def _shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _told_of_its_own(student: Student) -> str:
    """Which weights a network of another architecture starts with."""
    start, spec = student.pipeline.start, student.config.student.network
    assert spec is not None
    own = start.state_dict()
    size = f"{sum(value.numel() for value in own.values()):,} values"
    if spec.source.has_weights:
        return f"the generator starts from {spec.path}: a network of its own, {size}"
    taken = [own[name] for name in alike(start, student.pipeline.network)]
    return (
        f"the generator is a network of its own, {size}: {sum(value.numel() for value in taken):,} of them, "
        f"{len(taken)} of {len(own)} tensors, start as the teacher's of the same name and shape, the others at random"
    )


def _told(earlier: Earlier) -> str:
    more = ", or their average where one was kept, and the embeddings of what it is told"
    return (
        f"the generator starts from the {earlier.kind} {earlier.folder}: its weights are taken"
        f"{more if earlier.kind == 'checkpoint' else ''}; no moments and no other role, which start as always"
    )


def _check_kind(earlier: Earlier, pipeline: Pipeline) -> None:
    """Refuses an export whose notes mean other noise or another prediction by the times of the teacher."""
    notes = Notes.read(earlier.folder)
    for stops in notes.stops.values() if notes else ():
        fault = difference(stops, stops_of(pipeline.reading, [stop.timestep for stop in stops]))
        if fault:
            raise UserError(f"init is {earlier.folder}, of a teacher of another kind: of this one {fault}; {_REMEDY}")


def _of_checkpoint(earlier: Earlier, student: Student) -> tuple[dict[str, Tensor], bool]:
    """The generator's weights, averaged where they were, and whether they are an adapter."""
    config, snapshot = student.config, migrated(checkpoint.load(earlier.folder), earlier.folder)
    settings = snapshot.state["fingerprint"]
    adapted, made_of = settings.get("sharing") == "lora", snapshot.state.get("made_of", {})
    if made_of.get("teacher", {}) != materials(config)["teacher"]:
        raise UserError(f"init is {earlier.folder}, a checkpoint of a run with another teacher: {_REMEDY}")
    held = {**snapshot.group("generator"), **snapshot.tensors.get("ema", {})}
    weights = {_without_start(name): value for name, value in held.items()}
    objective = config.stages[0].objective
    known = objective.needs.scalars_of("generator")
    own = without_embeddings(weights)
    embedded = {name: value for name, value in weights.items() if name not in own}
    if not scalars_in(name.removeprefix(EMBEDDED) for name in embedded) <= {*known}:
        raise UserError(
            f"init is {earlier.folder}, whose generator is told what that of stage {config.stages[0].name!r} is not: "
            "give its exported student, into which that is baked"
        )
    if adapted and config.sharing == "lora":
        return _rescaled(weights, settings.get("lora", {}), config), True
    if adapted:
        merged = merge(student.teacher_network(), own, alpha=settings["lora"].get("alpha"))
        return {**merged.state_dict(), **embedded}, False
    return weights, False


def _rescaled(weights: dict[str, Tensor], lora: Mapping[str, Any], config: Config) -> dict[str, Tensor]:
    """An adapter's weights for this run's alpha."""
    before, now = scale_of(lora["rank"], lora.get("alpha")), _scale(config)
    return {name: value * (before / now) if name.endswith(UP_KEY) else value for name, value in weights.items()}


def _scale(config: Config) -> float:
    return scale_of(config.lora.rank, config.lora.alpha)


def _without_start(name: str) -> str:
    name = name.removeprefix("inner.")
    return next((name.removeprefix(start) for start in _OWN if name.startswith(start)), name)


def _of_pipeline(folder: Path, pipeline: Pipeline) -> dict[str, Tensor]:
    """The denoisers' weights in a pipeline's files, by their names in the teacher's network."""
    if StepHeads.read(folder) is not None:
        raise UserError(f"init is {folder}, whose last layer is another at each step: start from the teacher")
    files = weight_files(folder, variant_of(folder))
    weights: dict[str, Tensor] = {}
    for part, start in zip(denoisers_of(pipeline.pipe), networks_in(pipeline.network), strict=True):
        for file in files.get(part, ()):
            tensors = load_file(file)
            check_finite(tensors.items(), f"init: {file}")
            weights |= {f"{start}{name}": value for name, value in tensors.items()}
    silent = SILENT in weights and SILENT not in pipeline.start.state_dict() and not weights[SILENT].any()
    return {name: value for name, value in weights.items() if not (silent and name == SILENT)}


def _of_lora(earlier: Earlier, student: Student) -> dict[str, Tensor]:
    """The teacher's network with a LoRA in it, or the adapter that it is of a shared one."""
    net = student.teacher_network()
    pipe = student.pipeline.student(net, student.pipeline.pipe.scheduler)
    names = {id(parameter): name for name, parameter in network_of(pipe).named_parameters()}
    found: list[Place] = []
    try:
        for file in earlier.files:
            found += places_in(pipe, file, second=file is not earlier.files[0])
    except UserError as error:
        raise UserError(f"init is {student.config.init}, no LoRA of this teacher: {error}") from error
    if any(id(weight) not in names for weight, _, _ in found):
        raise UserError(f"init is {earlier.folder}, a LoRA that changes more than the denoiser: {_REMEDY}")
    if student.config.sharing == "lora":
        return _filled(_adapter(student, net), [(names[id(place[0])], place) for place in found], student.config)
    with torch.no_grad():
        for weight, update, rows in found:
            weight.add_(update.added(weight, rows))
    return net.state_dict()


def _adapter(student: Student, net: nn.Module) -> dict[str, Tensor]:
    """A generator's adapter at its start: A is drawn, B is zero, and norms and biases are the network's."""
    lora, state = student.config.lora, {}
    torch.manual_seed(seed_of(student.config.seed, "init"))
    for name in find_targets(net, lora.targets):
        down, up = factor_shapes(net.get_submodule(name), lora.rank)
        state[f"{name}{DOWN_KEY}"] = draw(torch.empty(down))
        state[f"{name}{UP_KEY}"] = torch.zeros(up)
    own = one_dimensional(net) if lora.norms else ()
    return state | {f"{name}.{slot}": module.get_parameter(slot).detach().cpu() for name, module, slot in own}


def _filled(state: dict[str, Tensor], found: Sequence[tuple[str, Place]], config: Config) -> dict[str, Tensor]:
    """An adapter that begins as a LoRA of at most its rank: of the rest, which is drawn, B is zero."""
    for name, (_, update, rows) in found:
        layer, rank = name.removesuffix(".weight"), len(update.down)
        if update.magnitude is not None:
            raise UserError(
                f"init is {config.init}, a DoRA, which no LoRA is: set sharing=full, into which it is merged"
            )
        if f"{layer}{DOWN_KEY}" not in state:
            raise UserError(
                f"init is {config.init}, a LoRA that changes {layer}, which this run does not: name it in "
                "lora.targets, or set sharing=full"
            )
        if rank > config.lora.rank:
            raise UserError(
                f"init is {config.init}, a LoRA of rank {rank}, and lora.rank is {config.lora.rank}: set "
                f"lora.rank={rank} or more, of which the rest starts without effect"
            )
        state[f"{layer}{DOWN_KEY}"][:rank] = update.down.float()
        state[f"{layer}{UP_KEY}"][:, :rank] = update.up[rows].float() * (update.scale / _scale(config))
    return state


def _check_same(wanted: Shapes, found: Shapes, config: Config) -> None:
    """Refuses weights of another network."""
    faults = list(_faults(wanted, found))
    if faults:
        kind = "adapter" if config.sharing == "lora" else "network"
        raise UserError(f"init is {config.init}, of another {kind} than this run's ({listed(faults)}): {_REMEDY}")


def _faults(wanted: Shapes, found: Shapes) -> Iterator[str]:
    for name in sorted({*wanted, *found}):
        if name not in found or name not in wanted:
            yield f"{name} is {'missing' if name in wanted else 'unknown'}"
        elif found[name] != wanted[name]:
            yield f"{name} is {list(found[name])}, not {list(wanted[name])}"
