"""A stock pipeline as a teacher: its denoiser, its conditioning, its codec."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...errors import UserError
from ...process import Flow, even_grid
from ..conditioning import Conditioning
from ..denoiser import NetworkDenoiser
from ..experts import Experts
from ..head_bank import Intervals
from .arguments import (
    check_embedded,
    check_given,
    conditioning_kind,
    noted_classes,
    null_label_above,
    real_classes,
    size_arguments,
)
from .canonical import static_shift
from .codec import Codec, codec_of
from .components import network_of, parts_of, rebuilt
from .encoding import Asking, Encoder
from .framing import Framing, framing_of
from .halved import told_in_bf16
from .loading import load
from .notes import Arguments
from .probe import emitted, opening, probe, small_size
from .refusal import checking
from .stock_pipeline import StockPipeline, StockScheduler
from .waking import SleepingCodec, awake, sleeping_autoencoder

EXAMPLES = ("a", "a longer one")
"""Prompts that a pipeline is asked for where any will do."""
_EXAMPLES = {"none": (None, None), "label": (0, 1), "prompt": EXAMPLES}


class Pipeline:
    """A Diffusers pipeline seen through a probe; its networks are frozen.

    Args:
        pipe: the pipeline, on the device of training.
        num_classes: number of real classes, for a class-conditional pipeline that does not say it.
        null_label: the label that means "no class", likewise.
        size: the call's own arguments for the size of a sample (height, width, num_frames), where it is not to be
            the pipeline's default.
        negative_prompt: prompt of the unconditional half; None leaves the pipeline's own.
        cache: folder for the conditioning of prompts; None keeps it in memory.
        test: whether what the probe reads is held against what the network answers; one without weights says nothing.
        sparing: the autoencoder, too, is on the device only while it is used.

    Raises:
        UserError: a label or a size that the pipeline does not have, or the probe's self-test fails.
    """

    _start: torch.nn.Module | None = None

    def __init__(
        self,
        pipe: StockPipeline,
        *,
        num_classes: int | None = None,
        null_label: int | None = None,
        size: Mapping[str, bool | int | float] | None = None,
        negative_prompt: str | None = None,
        cache: Path | None = None,
        test: bool = True,
        sparing: bool = False,
    ) -> None:
        self.pipe = pipe
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self.kind = conditioning_kind(pipe)
        self.size: Arguments = dict(size or {})
        self.classes = range(num_classes) if num_classes else real_classes(pipe, None)
        self.null_label = null_label if null_label is not None else null_label_above(pipe, self.classes)
        check_embedded(pipe, self.classes, self.null_label)
        argument = {"none": None, "label": "class_labels", "prompt": "prompt"}[self.kind]
        asking = Asking(argument, _EXAMPLES[self.kind], self.size, negative_prompt, self.null_label)
        self._sleepers = sleeping_autoencoder(pipe) if sparing else None
        with awake(self._sleepers):
            self.shape = tuple(opening(pipe, asking.call(asking.examples), rows=2).sample.shape[1:])
            small = Asking(argument, asking.examples, {**self.size, **small_size(pipe, self.shape)})
            probed = probe(pipe, small.call(asking.examples[:1]), small.call(asking.examples), test=test)
            self.reading, self.form = probed.reading, probed.form
            self._folder = cache if self.kind == "prompt" else None
            self.encoder = Encoder(pipe, self.form, asking, folder=self._folder, beside=self._sleepers)
        self._asking = asking
        self._sized: dict[tuple[int, int], Pipeline] = {}

    @classmethod
    def load(
        cls, path: str, *, device: torch.device, num_classes: int | None = None, null_label: int | None = None
    ) -> "Pipeline":
        """Loads a pipeline as it is from a folder or hub id."""
        num_classes, null_label = noted_classes(path, num_classes, null_label)
        return cls(load(path, device=device), num_classes=num_classes, null_label=null_label)

    @cached_property
    def codec(self) -> Codec:
        """The codec between images and samples; found when it is first needed."""
        with self.encoder.awake():
            codec = codec_of(self.pipe, self._asking.call(self._asking.examples[:1]))
        return codec if self._sleepers is None else SleepingCodec(codec, self._sleepers)

    @cached_property
    def framing(self) -> Framing | None:
        """Where its denoiser is told of an image's own size and crop; None where it is not."""
        with self.encoder.awake():
            return framing_of(self.pipe, self.form, self._asking.call(self._asking.examples))

    @property
    def has_null(self) -> bool:
        """Whether there is an unconditional half, which guidance needs."""
        return self.encoder.has_null

    @property
    def network(self) -> torch.nn.Module:
        """The denoising network, see `network_of`."""
        network: torch.nn.Module = network_of(self.pipe)
        return network

    @property
    def start(self) -> torch.nn.Module:
        """The network that a generator starts as a copy of: the teacher's, or another one, in main memory."""
        return self.network if self._start is None else self._start

    @property
    def boundary(self) -> float:
        """The process time below which the second of two networks is called; 0 where there is one."""
        network = self.network
        if not isinstance(network, Experts):
            return 0.0
        return float(self.reading.time(torch.tensor(network.boundary, dtype=torch.float64)))

    @cached_property
    def told_in(self) -> frozenset[torch.dtype]:
        """The dtypes of the numbers that the pipeline tells its network beside samples and times."""
        told = self.condition(1, labels=torch.tensor([self.classes.start]), prompts=["a"])
        leaves = [leaf for leaf in tree_leaves(told.kwargs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return frozenset(leaf.dtype for leaf in leaves)

    def denoiser(self, *, autocast: torch.dtype | None = None, scalars: Sequence[str] = ()) -> NetworkDenoiser:
        """A copy of the pipeline's network as a Denoiser, with zero embeddings of further scalars."""
        return self.speaking(copy.deepcopy(self.network), autocast=autocast, scalars=scalars)

    def speaking(
        self,
        net: torch.nn.Module,
        *,
        autocast: torch.dtype | None = None,
        scalars: Sequence[str] = (),
        heads: Intervals | None = None,
    ) -> NetworkDenoiser:
        """A network of the same kind as a Denoiser; its parameters are frozen."""
        net.requires_grad_(False)
        return NetworkDenoiser(net, self.reading, self.form, autocast=autocast, scalars=scalars, heads=heads)

    def emitted(self, scheduler: StockScheduler, steps: int) -> list[float]:
        """The scheduler timesteps that the pipeline's own call of so many steps stops at under that scheduler."""
        pipe = rebuilt(self.pipe, scheduler=scheduler)
        with self.encoder.awake():
            return emitted(pipe, self._asking.call(self._asking.examples), steps=steps)

    def told_in_bf16(self, scheduler: StockScheduler, steps: int) -> Tensor:
        """What the network is told at each stop of such a call, and what it is told in bf16, [2, n] in float64."""
        pipe = rebuilt(self.pipe, scheduler=scheduler)
        with self.encoder.awake():
            timesteps, told = told_in_bf16(pipe, self.form, self._asking.call(self._asking.examples), steps=steps)
        return torch.stack([self.form.timestep_at(self.reading, self.reading.time(timesteps)), told])

    def grid(self, steps: int) -> Tensor:
        """The process times that the pipeline's scheduler really stops at, [n] in float64."""
        with checking(type(self.pipe).__name__, f"its call runs {steps} steps"):
            timesteps = self.emitted(self.pipe.scheduler, steps)
        return self.reading.time(torch.tensor(timesteps, dtype=torch.float64))

    def teacher_grid(self, steps: int) -> Tensor:
        """Where deterministic samplers of the teacher stop: evenly from the noisiest level, with a flow's shift."""
        return even_grid(steps, shift=self._shift())

    def student(self, network: torch.nn.Module, scheduler: StockScheduler) -> StockPipeline:
        """A pipeline with another network and scheduler; all other parts are shared with this one."""
        pipe = copy.copy(self.pipe)
        pipe.register_modules(**parts_of(pipe, network), scheduler=scheduler)
        return pipe

    def starting_from(self, network: torch.nn.Module) -> "Pipeline":
        """The same teacher of generators that start as a copy of another network, which is called as the teacher's."""
        other = copy.copy(self)
        other._start = network
        return other

    def told_by(self, pipe: StockPipeline, *, smaller: bool = False) -> "Pipeline":
        """The same reading of another pipeline of its kind, for what that one tells its denoiser, which is not run.

        Args:
            smaller: at the size of the probe, where samples are larger.
        """
        other = self._at_size({**self.size, **(small_size(pipe, self.shape) if smaller else {})})
        other.pipe = pipe
        other.encoder = Encoder(pipe, self.form, other._asking, folder=None)
        return other

    def sized(self, height: int, width: int) -> "Pipeline":
        """The same reading asked for samples of another size: its shape, its codec, and what its denoiser is told.

        What a pipeline tells its denoiser of the size, as SDXL does of the original size, the crop and the target size,
        is what its own call tells it there. Each is made once.

        Raises:
            UserError: the pipeline's call takes no such size.
        """
        if (height, width) not in self._sized:
            size = size_arguments(self.pipe, height=height, width=width, frames=None)
            other = self._at_size({**self.size, **size})
            with awake(self._sleepers):
                call = other._asking.call(self._asking.examples)
                with self.encoder.awake():
                    other.shape = tuple(opening(self.pipe, call, rows=2).sample.shape[1:])
                other.encoder = Encoder(self.pipe, self.form, other._asking, folder=self._folder, beside=self._sleepers)
            self._sized[height, width] = other
        return self._sized[height, width]

    def _at_size(self, size: Arguments) -> "Pipeline":
        """A copy for calls of another size, without what was found out by calls of this one."""
        other = copy.copy(self)
        for name in ("codec", "told_in"):
            vars(other).pop(name, None)
        other.size, other._asking, other._sized = size, replace(self._asking, size=size), {}
        return other

    def encode(self, prompts: Sequence[str], *, share: tuple[int, int] = (0, 1), progress: bool = True) -> None:
        """Encodes prompts ahead of training, if the pipeline takes any; those in the cache already cost nothing.

        Args:
            share: (i, n) for the i-th of n processes that each encode a part.
        """
        if self.kind == "prompt":
            self.encoder.fill(prompts, share=share, progress=progress)

    def condition(
        self, rows: int, *, labels: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """Conditioning of labels [rows] or prompts, with its null twin, on the CPU; each is encoded once and kept.

        Raises:
            UserError: the pipeline wants labels or prompts and got none, or a label it does not have.
        """
        if self.kind == "none":
            return Conditioning(rows, shared=self.encoder.shared)
        given = prompts if self.kind == "prompt" else None if labels is None else labels.tolist()
        keys: list[Any] = list(given or ())
        check_given(self.pipe, self.kind, given=len(keys) == rows)
        if self.kind == "label":
            self._check_classes(keys)
        return self.encoder.rows(keys)

    def _check_classes(self, labels: Sequence[int]) -> None:
        for label in labels:
            if label not in self.classes:
                raise UserError(
                    f"the data has class {label}, but the teacher knows {self.classes.start} to "
                    f"{self.classes.stop - 1}: use data of the same classes, or set teacher.num_classes"
                )

    def _shift(self) -> float:
        """A flow's shift at this size: its middle stop of an even count lies at shift / (1 + shift)."""
        scheduler = self.pipe.scheduler
        if not isinstance(self.reading.process, Flow) or not scheduler.config.get("use_dynamic_shifting"):
            return static_shift(scheduler)
        middle = float(self.grid(8)[4])
        return middle / (1 - middle)
