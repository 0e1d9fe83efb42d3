"""What layers of a network return, read in passing."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .regions import layer_to_hook
from .sharding import around, kept_for_backward


class _Stop(Exception):
    """Raised by the hook of the last wanted layer."""


class Taps:
    """Collects the outputs of named layers and ends the forward pass after the last of them.

    A sharded network comes to its end, or its blocks would not be put away.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str]) -> None:
        self._modules = [layer_to_hook(net, layer) for layer in layers]
        self._around = [around(net, layer) for layer in layers]
        self._seen: dict[int, Any] = {}

    @property
    def outputs(self) -> list[Any]:
        return [self._seen.get(i) for i in range(len(self._modules))]

    def __enter__(self) -> None:
        self._hooks = [module.register_forward_hook(self._collector(i)) for i, module in enumerate(self._modules)]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for hook in self._hooks:
            hook.remove()
        return kind is _Stop

    def _collector(self, i: int) -> Any:
        def collect(_module: nn.Module, _args: Any, output: Any) -> None:
            self._seen[i] = kept_for_backward(output, self._around[i])
            if len(self._seen) == len(self._modules) and not any(self._around):
                raise _Stop

        return collect
