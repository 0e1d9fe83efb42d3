"""Scalars that a network is told beside its time, such as a second time: embeddings added to its time embedding.

They start as exact zeros, so that a pretrained network first says what it said before.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .experts import Experts, networks_in
from .regions import layer_to_hook

TIME_EMBEDDINGS = ("TimestepEmbedding", "TimestepEmbedder")
FREQUENCIES = 64


class ScalarEmbeddings(nn.Module):
    """Zero-initialised embeddings of named scalars in [-1, 1], one perceptron each; none without names.

    Args:
        net: network whose time embedding they are added to; of two experts, both.
        names: names of the scalars.

    Raises:
        ValueError: the network has no layer that embeds its time.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.embed = nn.ModuleDict()
        if names:
            self.layers = [start + find_time_embedding(part) for start, part in networks_in(net).items()]
            embedding = net.get_submodule(self.layers[0])
            width = [m for m in embedding.modules() if isinstance(m, nn.Linear)][-1].out_features
            self.embed.update({name: _perceptron(width) for name in names})
            self.embed.to(next(net.parameters()).device)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.embed)

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """What the values [B] add to the time embedding, [B, width]."""
        return torch.stack([self.embed[name](_waves(value)) for name, value in values.items()]).sum(dim=0)

    def words(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The argument of `told` for these values [B]; a scalar without a value adds nothing.

        Raises:
            ValueError: a scalar is given that was not declared.
        """
        refuse_undeclared(self.names, values)
        return {"added": self(values)} if values else {}

    @contextmanager
    def told(self, net: nn.Module, words: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which `net` adds these words, made by `words`, to its time embedding; without words, nothing."""
        if not words:
            yield
            return
        added = words["added"]

        def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            rows = added[net.rows] if isinstance(net, Experts) else added
            rows = rows.reshape(len(rows), *[1] * (output.ndim - 2), -1)
            return output + rows.to(output.device, output.dtype)

        hooks = [layer_to_hook(net, layer).register_forward_hook(add) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def scalars_in(names: Iterable[str]) -> set[str]:
    """The scalars that embeddings are of, by the names in their state dict; of other embeddings, none that there is."""
    return {name.removeprefix("embed.").partition(".")[0] for name in names}


def refuse_undeclared(declared: Sequence[str], given: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a scalar is given to a network that was built without it."""
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise ValueError(f"the network has no embedding for {', '.join(unknown)}: declare it when the role is built")


def find_time_embedding(net: nn.Module) -> str:
    """Name of the layer that makes a vector of the time: the outermost, and no embedding of a guidance scale.

    Raises:
        ValueError: there is none.
    """
    found: list[str] = [name for name, module in net.named_modules() if _embeds_time(name.split(".")[-1], module)]
    if not found:
        raise ValueError(f"{type(net).__name__} has no time embedding that a scalar could be added to")
    return min(found, key=lambda name: name.count("."))


def _embeds_time(name: str, module: nn.Module) -> bool:
    known = type(module).__name__.endswith(TIME_EMBEDDINGS) or name == "time_embedding"
    return known and "guidance" not in name


def _perceptron(width: int) -> nn.Sequential:
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), last)


def _waves(value: Tensor) -> Tensor:
    """Sinusoids of a scalar [B] at wave numbers from 1 to 1000, [B, 2 FREQUENCIES] in fp32."""
    numbers = torch.logspace(0, 3, FREQUENCIES, dtype=torch.float64, device=value.device)
    angles = math.pi / 2 * value.double()[:, None] * numbers
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
