"""A stock pipeline as a teacher: its denoiser, its conditioning, its codec."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..errors import UserError
from ..notes import Notes
from ..process import even_grid
from .arguments import conditioning_kind, guidance_argument, real_classes
from .codec import codec_of
from .conditioning import Conditioning
from .denoiser import NetworkDenoiser
from .loading import load
from .probe import capture, denoiser_name, emitted, probe

PROMPTS_AT_ONCE = 32


class Pipeline:
    """A Diffusers pipeline seen through a probe.

    Args:
        pipe: the pipeline, on the device of training.
        num_classes: number of real classes, for a class-conditional pipeline that does not say it.
        null_label: the label that means "no class", likewise.

    Raises:
        UserError: a label that the network does not have, or the probe's self-test fails.
    """

    def __init__(
        self, pipe: DiffusionPipeline, *, num_classes: int | None = None, null_label: int | None = None
    ) -> None:
        self.pipe = pipe
        self.kind = conditioning_kind(pipe)
        self.classes = range(num_classes) if num_classes else real_classes(pipe, None)
        self.null_label = null_label if null_label is not None else _null_label(pipe, self.classes)
        _check_labels(pipe, self.classes, self.null_label)
        probed = probe(pipe, self.example)
        self.reading, self.form, self.shape = probed.reading, probed.form, probed.shape
        self.codec = codec_of(pipe)
        self._table: Conditioning | None = None
        self._rows: dict[int | str, int] = {}

    @classmethod
    def load(cls, path: str, *, device: torch.device, num_classes: int | None, null_label: int | None) -> "Pipeline":
        """From a folder or hub id; what its `fastgen.json` says of classes fills what is not given."""
        pipe = load(path, device=device)
        notes = Notes.read(Path(path)) if Path(path).is_dir() else None
        if notes is not None:
            num_classes = num_classes or notes.num_classes
            null_label = notes.null_label if null_label is None else null_label
        return cls(pipe, num_classes=num_classes, null_label=null_label)

    @property
    def example(self) -> dict[str, list[Any]]:
        """The call's own arguments for two samples."""
        return {"none": {}, "label": {"class_labels": [0, 1]}, "prompt": {"prompt": ["a", "b"]}}[self.kind]

    @property
    def unguided(self) -> dict[str, float]:
        """The call's argument that switches guidance off, if it has one."""
        return guidance_argument(self.pipe, 1.0)

    @property
    def network(self) -> torch.nn.Module:
        return getattr(self.pipe, denoiser_name(self.pipe))

    def denoiser(self, *, autocast: torch.dtype | None = None) -> NetworkDenoiser:
        """A copy of the pipeline's network as a Denoiser."""
        net = copy.deepcopy(self.network).requires_grad_(False)
        return NetworkDenoiser(net, self.reading, self.form, autocast=autocast)

    def grid(self, steps: int) -> Tensor:
        """The process times that the pipeline's scheduler really stops at, [n] in float64."""
        timesteps = emitted(self.pipe, self.example, steps=steps)
        return self.reading.time(torch.tensor(timesteps, dtype=torch.float64))

    def teacher_grid(self, steps: int) -> Tensor:
        """Where deterministic samplers of the teacher stop: evenly from the noisiest level, with a flow's shift."""
        return even_grid(steps, shift=float(self.pipe.scheduler.config.get("shift") or 1.0))

    def student(self, weights: Mapping[str, Tensor], scheduler: Any) -> DiffusionPipeline:
        """A pipeline with other weights and another scheduler; all other parts are shared with this one."""
        net = copy.deepcopy(self.network)
        net.load_state_dict(weights)
        pipe = copy.copy(self.pipe)
        pipe.register_modules(**{denoiser_name(self.pipe): net, "scheduler": scheduler})
        return pipe

    def condition(
        self, rows: int, *, labels: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """Conditioning of labels [rows] or prompts, with its null twin; each is encoded once and kept.

        Raises:
            UserError: the pipeline wants labels or prompts and got none, or a label it does not have.
        """
        if self.kind == "none":
            return Conditioning(rows)
        keys: list[Any] = labels.tolist() if self.kind == "label" and labels is not None else list(prompts or ())
        if len(keys) != rows:
            raise UserError(
                f"{type(self.pipe).__name__} is conditioned on {self.kind}s and the data has none for its rows: "
                f"choose a data source with {self.kind}s"
            )
        self._encode([key for key in dict.fromkeys(keys) if key not in self._rows])
        assert self._table is not None
        return self._table.index(torch.tensor([self._rows[key] for key in keys]))

    def _encode(self, fresh: list[Any]) -> None:
        for key in fresh:
            if self.kind == "label" and key not in self.classes:
                raise UserError(
                    f"the data has class {key}, but the teacher knows {self.classes.start} to "
                    f"{self.classes.stop - 1}: use data of the same classes, or set teacher.num_classes"
                )
        for start in range(0, len(fresh), PROMPTS_AT_ONCE):
            part = fresh[start : start + PROMPTS_AT_ONCE]
            told = self._captured(part)
            for key in part:
                self._rows[key] = len(self._rows)
            self._table = told if self._table is None else Conditioning.cat([self._table, told])

    def _captured(self, keys: list[Any]) -> Conditioning:
        """What the pipeline tells its denoiser of these labels or prompts, and of none."""
        padded = keys if len(keys) > 1 else keys * 2
        name, nothing = ("class_labels", self.null_label) if self.kind == "label" else ("prompt", "")
        told = capture(self.pipe, self.form, {name: padded}, rows=len(padded))
        null = None
        if nothing is not None:
            null = capture(self.pipe, self.form, {name: [nothing] * len(padded)}, rows=len(padded))
        both = Conditioning(told.size, told.batched, told.shared, null)
        return both.index(torch.arange(len(keys)))


def _check_labels(pipe: DiffusionPipeline, classes: range, null_label: int | None) -> None:
    config = getattr(pipe, denoiser_name(pipe)).config
    dit = config.get("num_embeds_ada_norm")  # DiT's null label lies above its classes
    known, highest = config.get("num_class_embeds") or (dit + 1 if dit else 0), max(classes.stop - 1, null_label or 0)
    if 0 < known <= highest:
        raise UserError(
            f"teacher.num_classes and teacher.null_label reach label {highest}, but the {type(pipe).__name__} has "
            f"embeddings for 0 to {known - 1}: correct these two settings"
        )


def _null_label(pipe: DiffusionPipeline, classes: range) -> int | None:
    """The embedding just above the real classes, if there is one."""
    count = getattr(pipe, denoiser_name(pipe)).config.get("num_class_embeds") or 0
    return classes.stop if count > classes.stop > 0 else None
