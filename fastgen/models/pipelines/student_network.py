"""A student's network of another architecture than its teacher's, such as a smaller one (MSD, arXiv:2410.23274)."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError, did_you_mean
from ...limits import read_json
from ..casting import cast, dtype_of
from ..experts import Experts, networks_in
from ..layout import flat
from .components import NETWORKS, SECOND
from .finite import check_finite
from .fuse import PICKLES
from .loading import check_weights, line, weights_by_variant
from .pipeline import Pipeline

CONFIG = "config.json"
_REFUSED = "student.network cannot take the place of the teacher's network:"
_REMEDY = "give it the teacher's settings of inputs, outputs and conditions"


@dataclass(frozen=True)
class NetworkSource:
    """Where a network of another architecture comes from.

    Args:
        path: folder of a network, or of a pipeline that has one; None for changes of the teacher's.
        settings: settings in the place of those of the teacher's network.
    """

    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def outline(self, teacher: nn.Module) -> nn.Module:
        """The network with random weights in float32, or with none where torch's default device is `meta`.

        Args:
            teacher: its network, or two of them as one, of which the new one has the classes.

        Raises:
            UserError: there is no such network, or it is of another class than the teacher's.
        """
        networks = list(networks_in(teacher).values())
        folders = [None] * len(networks) if self.path is None else _folders(self.path, len(networks))
        made = [self._made(net, folder) for net, folder in zip(networks, folders, strict=True)]
        return Experts(*made, boundary=teacher.boundary) if isinstance(teacher, Experts) else made[0]

    def built(self, teacher: nn.Module, *, seed: int) -> nn.Module:
        """The network in float32 in main memory: its own weights, or the teacher's where they agree, and drawn others.

        Args:
            teacher: as of `outline`.
            seed: seed of the weights that are drawn.

        Raises:
            UserError: as `outline`, or files of weights do not fit their config.
        """
        torch.manual_seed(seed)
        network = self.outline(teacher)
        own, theirs = self._own(network), teacher.state_dict()
        try:
            network.load_state_dict(own or {name: theirs[name] for name in alike(network, teacher)}, strict=bool(own))
        except RuntimeError as error:
            raise UserError(
                f"student.network.path {self.path} has weights of another network than its {CONFIG} says "
                f"({line(error)}): save the network again with save_pretrained"
            ) from error
        return network.eval().requires_grad_(False)

    @property
    def has_weights(self) -> bool:
        """Whether the folder has weights, so that none are the teacher's; of two networks both have, or neither."""
        return self.path is not None and any(map(_weights, _folders(self.path, 1)))

    @property
    def files(self) -> list[Path]:
        """All that is read of the folder."""
        if self.path is None:
            return []
        folders = _folders(self.path, 2 if (self.path / SECOND / CONFIG).is_file() else 1)
        return [file for folder in folders for file in (folder / CONFIG, *_weights(folder))]

    def _made(self, teacher: nn.Module, folder: Path | None) -> nn.Module:
        name = type(teacher).__name__
        kind: Any = getattr(diffusers, name, None)
        if kind is None:
            raise UserError(f"student.network asks for another {name}, which is no class of Diffusers: leave it out")
        settings = self._changed(kind, teacher) if folder is None else _read(folder, name)
        try:
            made: nn.Module = kind.from_config(settings)
        except Exception as error:  # whatever a constructor makes of numbers that no network has
            raise UserError(
                f"student.network{'.settings' if folder is None else f'.path {folder}'}: {name} does not take this "
                f"config ({line(error)}): correct it"
            ) from error
        return made.float()

    def _changed(self, kind: Any, teacher: Any) -> dict[str, Any]:
        known = set(inspect.signature(kind.__init__).parameters) - {"self"}
        for key in self.settings:
            if key not in known:
                hint = did_you_mean(key, known, otherwise=f"it takes {', '.join(sorted(known))}")
                raise UserError(f"student.network.settings: {kind.__name__} has no setting {key!r}; {hint}")
        return {**{key: value for key, value in teacher.config.items() if key in known}, **self.settings}

    def _own(self, network: nn.Module) -> dict[str, Tensor]:
        """What the folder has, by its names in the network; nothing where it has no weights."""
        if self.path is None or not self.has_weights:
            return {}
        parts = networks_in(network)
        found = zip(parts, _folders(self.path, len(parts)), strict=True)
        return {f"{start}{name}": value for start, folder in found for name, value in _tensors(folder)}


def alike(network: nn.Module, teacher: nn.Module) -> list[str]:
    """The names of a network's tensors that agree with those of the teacher's in name and shape."""
    theirs = teacher.state_dict()
    return [
        name
        for name, value in network.state_dict().items()
        if name in theirs and theirs[name].shape == value.shape and theirs[name].is_floating_point()
    ]


def check_called_alike(network: nn.Module, pipeline: Pipeline) -> None:
    """Probes a stock pipeline with another network in the place of its own, as it was probed with its own.

    Raises:
        UserError: it does not run with it, or calls it otherwise.
    """
    own = pipeline.network
    trial = cast(copy.deepcopy(network), dtype_of(own)).to(next(own.parameters()).device)
    classes, null = len(pipeline.classes) or None, pipeline.null_label
    try:
        with pipeline.encoder.awake():
            pipe = pipeline.student(trial, pipeline.pipe.scheduler)
            probed = Pipeline(pipe, num_classes=classes, null_label=null, size=pipeline.size)
    except UserError as error:
        raise UserError(f"{_REFUSED} {_REMEDY} ({error})") from error
    theirs, ours = _called(pipeline), _called(probed)
    for what, expected in theirs.items():
        if ours[what] != expected:
            raise UserError(f"{_REFUSED} its {what} would be {ours[what]}, not {expected}: {_REMEDY}")


def _called(pipeline: Pipeline) -> dict[str, Any]:
    """How a pipeline's network is called, in the words of a refusal."""
    told = pipeline.condition(1, labels=torch.tensor([pipeline.classes.start]), prompts=["a"])
    return {
        "samples": list(pipeline.shape),
        "conditions": sorted(flat(told.kwargs)) or "none",
        "channels of the output": pipeline.form.channels or "all",
    }


def _folders(path: Path, count: int) -> list[Path]:
    """The folders of so many networks: the path itself, or those of the denoisers of a pipeline."""
    if (path / CONFIG).is_file() and count == 1:
        return [path]
    first = next((path / name for name in NETWORKS if (path / name / CONFIG).is_file()), None)
    folders = [folder for folder in (first, path / SECOND) if folder is not None][:count]
    if len(folders) < count or not all((folder / CONFIG).is_file() for folder in folders):
        wanted = "" if count == 1 else f" with {count} denoisers"
        raise UserError(
            f"student.network.path {path} is no folder of a network or of a pipeline{wanted}: give one that "
            "save_pretrained wrote, or changes of the teacher's as student.network.settings"
        )
    bare = [folder for folder in folders if not _weights(folder)]
    if 0 < len(bare) < count:
        raise UserError(
            f"student.network.path {path} has weights of one denoiser, but none in {bare[0]}: copy or download them "
            "too, or take the others away to start from the teacher's weights"
        )
    return folders


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The config in a folder.

    Raises:
        UserError: it is that of another class, or has weights beside it that are not read.
    """
    _weights(folder)
    config = read_json(folder / CONFIG)
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != name:
        raise UserError(
            f"student.network.path {folder} holds a {found}, and the teacher's pipeline calls a {name}: give a network "
            "of that class"
        )
    return dict(config)


def _weights(folder: Path) -> list[Path]:
    """The plain files of weights in a network's folder, or those of its first variant.

    Raises:
        UserError: it has none but files that are not read.
    """
    files = weights_by_variant(folder)
    unread = [file for file in sorted(folder.iterdir()) if file.suffix in {".safetensors", *PICKLES}]
    if unread and not files:
        raise UserError(
            f"student.network.path: the weights in {unread[0]} are not read, only those that save_pretrained writes as "
            "safetensors: save the network so, or take the file away to start from the teacher's weights"
        )
    return files.get(None) or next(iter(files.values()), [])


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = _weights(folder)
    check_weights(*files)
    for file in files:
        tensors = load_file(file)
        check_finite(tensors.items(), f"student.network.path: {file}")
        yield from tensors.items()
