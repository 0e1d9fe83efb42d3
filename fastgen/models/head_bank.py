r"""Many heads in the place of a network's last linear layer (PDD, arXiv:2607.26004).

Head k is W + offset_k and speaks of the k-th of N intervals of time, whatever time the network is called at. Heads of
neighbouring intervals are fused by the intervals' lengths D_k in the flow's time,

    W + sum_k D_k offset_k / sum_k D_k,

so that one call tells the mean velocity over any run of intervals. The layer's bias is one for all heads: what is fused
is then an update of one weight, which a LoRA holds too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..process import Process
from .low_rank import factor_shapes
from .regions import layer_to_hook
from .scalars import refuse_undeclared

INTERVAL = ("r", "s")
"""What a generator with heads is told: the times [B] at which the intervals that it speaks of begin and end."""
NAMED = ("conv_out", "proj_out_2", "proj_out")
"""Names of last layers in Diffusers, which some networks register before others."""
HEADS = "heads."
"""What the keys of fused heads begin with beside those of a network, before the step count."""
Linear = nn.Linear | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, eq=False)
class Intervals:
    """N intervals of time.

    Args:
        edges: the descending process times [N + 1] between them.
        lengths: their lengths [N] in the flow's time sigma / (alpha + sigma), in which slopes add up.
    """

    edges: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, process: Process, edges: Tensor) -> "Intervals":
        alpha, sigma = process.alpha(edges), process.sigma(edges)
        return cls(edges.double(), -(sigma / (alpha + sigma)).diff())

    def on(self, device: torch.device) -> "Intervals":
        return Intervals(self.edges.to(device), self.lengths.to(device))

    def shares(self, r: Tensor, s: Tensor) -> Tensor:
        """The shares [B, N] of the intervals in the run from r to s [B], at least the one that begins at r."""
        count = len(self.lengths)
        begin, end = ((self.edges - time[:, None]).abs().argmin(dim=1, keepdim=True) for time in (r, s))
        begin = begin.clamp(max=count - 1)
        k = torch.arange(count, device=self.edges.device)
        inside = (k >= begin) & ((k < end) | (k == begin))
        return inside * self.lengths / (inside * self.lengths).sum(dim=1, keepdim=True)


class HeadBank(nn.Module):
    """The offsets of the heads, zeros at first, so that a pretrained network first says what it said before.

    It takes the place of `ScalarEmbeddings` in a role.

    Args:
        net: network whose last linear layer they belong to.
        intervals: what the heads speak of, in the process that the role is asked in.

    Raises:
        ValueError: the network has no such layer.
    """

    names = INTERVAL

    def __init__(self, net: nn.Module, intervals: Intervals) -> None:
        super().__init__()
        device = next(net.parameters()).device
        self.layers = [last_linear(net)]
        self.intervals = intervals.on(device)
        shape = weight_shape(net.get_submodule(self.layers[0]))
        self.offsets = nn.Parameter(torch.zeros(len(intervals.lengths), *shape, device=device))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """The offsets [B, out, in, ...] of heads that are fused from `r` to `s`, in float64."""
        shares = self.intervals.shares(values["r"], values["s"])
        fused: Tensor = (shares @ self.offsets.double().flatten(1)).unflatten(1, self.offsets.shape[1:])
        return fused

    def words(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `told` is given for runs from `r` to `s` [B].

        Raises:
            ValueError: something else is told, or only one end.
        """
        refuse_undeclared(self.names, values)
        if not values:
            return {}
        if set(values) != set(self.names):
            raise ValueError(f"heads are told where their intervals begin and end, r and s, not {', '.join(values)}")
        return {"offsets": self.offsets, "shares": self.intervals.shares(values["r"], values["s"])}

    @contextmanager
    def told(self, net: nn.Module, words: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, `net` speaks of the runs that the words tell; without them it is the network without offsets."""
        if not words:
            yield
            return

        def add(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + _fused(layer, args[0], **words).to(output.dtype)

        hook = layer_to_hook(net, self.layers[0]).register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


def _fused(layer: Any, x: Tensor, offsets: Tensor, shares: Tensor) -> Tensor:
    """What the offsets add for x, whose rows have their own shares: all heads in one call, then their mean."""
    every = offsets.flatten(0, 1).to(x.dtype)
    shares = shares.to(x.dtype)
    if isinstance(layer, nn.Linear):
        heads = nn.functional.linear(x, every).unflatten(-1, (shares.shape[1], -1))
        return torch.einsum("bn,b...no->b...o", shares, heads)
    heads = layer._conv_forward(x, every, None).unflatten(1, (shares.shape[1], -1))
    return torch.einsum("bn,bno...->bo...", shares, heads)


def last_linear(net: nn.Module) -> str:
    """Name of the linear layer or convolution that a network ends with.

    Raises:
        ValueError: there is none.
    """
    found = {name: module for name, module in net.named_modules() if isinstance(module, Linear)}
    if not found:
        raise ValueError(f"{type(net).__name__} has no linear layer that it could end with")
    return next((name for name in NAMED if name in found), [*found][-1])


def weight_shape(layer: Any) -> tuple[int, ...]:
    """[out, in, ...] of a linear layer or convolution; a quantised weight lies in memory otherwise."""
    (_, *inner), (out, *_) = factor_shapes(layer, 1)
    return (out, *inner)


@torch.no_grad()
def ends_with_heads(model: Any, shape: Sequence[int], cond: Any) -> bool:
    """Whether the heads really are the last thing that a denoiser does to each sample.

    It is tested by drawing offsets: the prediction must be linear in a row's own head and not depend on other rows'.

    Args:
        model: a denoiser with heads for two intervals, whose offsets are drawn here.
        shape: of a sample.
        cond: what it is told of two samples.
    """
    bank: HeadBank = model.embeddings
    first, middle, last = bank.intervals.edges
    told = {"r": torch.stack([first, middle]), "s": torch.stack([middle, last])}
    rng = torch.Generator().manual_seed(0)
    x, head = (torch.randn(size, generator=rng).to(first.device) for size in ((2, *shape), bank.offsets.shape[1:]))
    said = []
    for factor in (0, 1, 2):
        bank.offsets[1] = factor * head / head[0].numel() ** 0.5
        said.append(model(x, middle.expand(2), cond, told).x0.double())
    once, curved = (said[1] - said[0]).abs(), (said[2] - 2 * said[1] + said[0]).abs()
    of_row = once.flatten(1).amax(dim=1)
    return bool(of_row[1] > 0) and float(of_row[0] + curved.max()) < 0.05 * float(of_row[1])


class Headed(nn.Module):
    """A denoiser whose network has another last weight at each stop of one step count.

    Args:
        inner: the denoiser.
        heads: process time of a stop -> weight of the last linear layer there.
    """

    scalars: tuple[str, ...] = ()

    def __init__(self, inner: Any, heads: Mapping[float, Tensor]) -> None:
        super().__init__()
        self.inner, self.heads, self.process = inner, dict(heads), inner.process
        self.guide, self.tap = inner.guide, inner.tap
        self.net: nn.Module = inner.net
        self._layer: Any = inner.net.get_submodule(last_linear(inner.net))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any, scalars: Mapping[str, Tensor] | None = None) -> Any:
        """The belief with the head of t [B], one for all rows, which is that of the nearest stop."""
        refuse_undeclared(self.scalars, scalars or {})
        head = self.heads[min(self.heads, key=lambda stop: abs(stop - float(t[0])))]
        with swapped(self._layer, head):
            return self.inner(x_t, t, cond)


@contextmanager
def swapped(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Within, a layer has another weight."""
    own: Any = layer._parameters["weight"]
    layer._parameters["weight"] = nn.Parameter(weight.to(own.device, own.dtype), requires_grad=False)
    try:
        yield
    finally:
        layer._parameters["weight"] = own


def steps_of(grid: Tensor) -> dict[str, Tensor]:
    """Where the steps of a student begin and end, as a generator with heads is told it, [n] each."""
    return {"r": grid.double(), "s": torch.cat([grid[1:], grid.new_zeros(1)]).double()}
