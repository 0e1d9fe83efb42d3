"""A network as a Denoiser: the one border where timesteps, parameterisations and autocast are known."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..process import Latent, Prediction, Process, Reading, Time, pad_like
from .casting import dtype_of, fitting
from .conditioning import Conditioning
from .contract import BELIEF
from .graphs import Graphs
from .head_bank import HeadBank, Intervals
from .layout import Layout
from .recompute import enable_checkpointing
from .recordable import Actor
from .scalars import ScalarEmbeddings
from .sequences import Parts
from .taps import Taps

WORDS = "words of embeddings"
"""Under which a recorded call is given what its embeddings tell the network, beside the network's own arguments."""
Acting = tuple[Hashable, Sequence[nn.Parameter]]


@dataclass(frozen=True)
class CallForm:
    """How a network is called.

    Args:
        sample: name of the argument that takes x_t.
        timestep: name of the argument that takes the time.
        basis: what the network's timestep is affine in: the scheduler's timestep or the process time.
        slope, offset: the network's timestep is `slope * basis + offset`.
        sign: the network's output is this times what the scheduler's step is given.
        channels: leading output channels that are the prediction (the rest is a learned variance).
        listed: x_t and output are lists of samples, each with further axes of length one at these places; None for
            plain tensors.
        rescaled: guided outputs get the norm of the conditional ones back along the last axis (Qwen-Image).
        layout: which of the other arguments have a row per sample.
    """

    sample: str = "sample"
    timestep: str = "timestep"
    basis: Literal["timestep", "time"] = "timestep"
    slope: float = 1.0
    offset: float = 0.0
    sign: float = 1.0
    channels: int | None = None
    listed: tuple[int, ...] | None = None
    rescaled: bool = False
    layout: Layout = field(default_factory=Layout)

    def timestep_at(self, reading: Reading, t: Time) -> Tensor:
        """The network's timestep at process times [B]."""
        return self.slope * (reading.timestep(t) if self.basis == "timestep" else t) + self.offset

    def given(self, x_t: Latent) -> Any:
        """x_t as the network takes it."""
        if self.listed is None:
            return x_t
        rows = list(x_t.unbind(0))
        for axis in self.listed:
            rows = [row.unsqueeze(axis) for row in rows]
        return rows

    def taken(self, output: Any, like: Latent) -> Tensor:
        """The network's output [B, C', ...] with the axes of `like`."""
        stacked: Tensor = output
        if self.listed is not None:
            stacked = torch.stack(output).reshape(len(like), -1, *like.shape[2:])
        return stacked


class NetworkDenoiser(nn.Module):
    """A network that a scheduler's reading gives meaning to.

    Args:
        net: called as `net(sample, timestep, **cond)`; stays in eval mode (some families drop labels or change
            their output in train mode).
        reading: the process, the row and the timestep of the network's scheduler.
        form: names, sign and channels of the call.
        autocast: dtype of the forward pass, None for the parameters' own.
        scalars: names of further values that it can be told, see `ScalarEmbeddings`.
        heads: what heads in the place of the last linear layer speak of, see `HeadBank`; in the place of scalars.
    """

    net: nn.Module

    def __init__(
        self,
        net: nn.Module,
        reading: Reading,
        form: CallForm,
        *,
        autocast: torch.dtype | None = None,
        scalars: Sequence[str] = (),
        heads: Intervals | None = None,
    ) -> None:
        super().__init__()
        self.net = net.eval()
        self.embeddings = ScalarEmbeddings(net, scalars) if heads is None else HeadBank(net, heads)
        self.reading = reading
        self.form = form
        self.autocast = autocast
        self.graphs: Graphs | None = None
        self.acting: Callable[[], Acting] = lambda: (None, self._weights)
        """Who acts on the network, and what of it may be trained."""
        self.parts: Parts | None = None
        """The division of its tokens among processes; None where every process has all of them."""

    @cached_property
    def _weights(self) -> tuple[nn.Parameter, ...]:
        return tuple(self.net.parameters())

    def checkpoint_blocks(self, every: int = 1) -> None:
        """See `enable_checkpointing`."""
        enable_checkpointing(self.net, every=every)

    @property
    def process(self) -> Process:
        return self.reading.process

    @property
    def scalars(self) -> tuple[str, ...]:
        return self.embeddings.names

    @property
    def own(self) -> nn.Module:
        """What a role has of its own: the whole network."""
        return self.net

    def forward(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        scalars: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        return self.predict(x_t, t, cond, self.embeddings, scalars or {})

    def predict(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        embeddings: ScalarEmbeddings | HeadBank,
        scalars: Mapping[str, Tensor],
    ) -> Prediction:
        """The belief of the network, told scalars by the embeddings of the role that acts."""
        return self._belief(x_t, t, self._run(x_t, t, cond, embeddings, embeddings.words(scalars)))

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        """uncond + w (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, in Diffusers' convention).

        Where the pipeline gives the conditional output's norm back to the guided one, so does this.
        """
        mixed = null.lerp(cond, w)
        if not self.form.rescaled:
            return mixed
        row = self.reading.row
        output, plain = mixed.output(row), cond.output(row)
        output = output * (plain.norm(dim=-1, keepdim=True) / output.norm(dim=-1, keepdim=True))
        return Prediction.solve(self.process, cond.at(cond.t), cond.t, output, row=row)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Any]:
        """See `Denoiser.tap`; even a compiled network runs as it was written, since compiled code knows no hooks."""

        def tapped(told: Mapping[str, Any]) -> list[Any]:
            taps = Taps(self.net, layers)
            with taps, self._cast(x_t.device):
                self.net._call_impl(**told)
            return [output_of(said) if of == BELIEF else said for of, said in zip(layers, taps.outputs, strict=True)]

        outputs: list[Any] = self._called(tapped, self._told(x_t, t, cond), part=tuple(layers))
        return [self._belief(x_t, t, said) if of == BELIEF else said for of, said in zip(layers, outputs, strict=True)]

    def train(self, mode: bool = True) -> "NetworkDenoiser":
        """Stays in eval mode."""
        return super().train(False)

    def _run(
        self,
        x_t: Latent,
        t: Time,
        cond: Conditioning,
        embeddings: ScalarEmbeddings | HeadBank,
        words: dict[str, Tensor],
    ) -> Any:
        def run(told: Mapping[str, Any]) -> Any:
            told = dict(told)
            with embeddings.told(self.net, told.pop(WORDS, {})), self._cast(x_t.device):
                return output_of(self.net(**told))

        said = {WORDS: words} if words else {}
        if self.parts is not None:
            told = self._told(self.parts.entering(x_t), t, cond) | said
            return self.parts.leaving(run({**told, "return_dict": False}))  # hooks of `parts` take tensors
        return self._called(run, self._told(x_t, t, cond) | said)

    def _belief(self, x_t: Latent, t: Time, said: Any) -> Prediction:
        """What the network's output means."""
        output = self.form.taken(said, x_t).to(x_t.dtype) * self.form.sign
        return Prediction.solve(self.process, x_t, t, output[:, : self.form.channels], row=self.reading.row)

    def _told(self, x_t: Latent, t: Time, cond: Conditioning) -> dict[str, Any]:
        """What the network is told by name."""
        form = self.form
        dtype = x_t.dtype if self.autocast else dtype_of(self.net)
        scaled = (x_t * pad_like(self.reading.input_scale(t), x_t)).to(dtype)
        timestep = form.timestep_at(self.reading, t).to(x_t.device, torch.float32)
        told: dict[str, Any] = fitting(form.layout.arguments(cond), dtype)
        return {form.sample: form.given(scaled), form.timestep: timestep, **told}

    def _cast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _called(self, function: Callable[[Mapping[str, Any]], Any], told: dict[str, Any], part: Any = None) -> Any:
        """The function of what the network is told, as a graph where there are graphs."""
        if self.graphs is None:
            return function(told)
        role, parameters = self.acting()
        actor = Actor((id(self.net), role, part), self.net, parameters, self._weights, function)
        return self.graphs.call(actor, told)


def output_of(raw: Any) -> Any:
    """The tensor (or list of tensors) in what a denoiser returned."""
    if isinstance(raw, tuple):
        return raw[0]
    return raw if isinstance(raw, Tensor | list) else raw.sample
