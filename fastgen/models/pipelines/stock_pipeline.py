"""What is relied on of a stock Diffusers pipeline, whatever its class."""

from collections.abc import Callable, ItemsView, Iterator, KeysView, MutableMapping
from os import PathLike
from typing import Any, Protocol, Self, TypeGuard

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor


class Config(Protocol):
    """The settings of a part, read by key or as attributes."""

    def __getattr__(self, name: str, /) -> Any: ...

    def __getitem__(self, name: str, /) -> Any: ...

    def __contains__(self, name: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def get(self, name: str, default: Any = None, /) -> Any: ...

    def keys(self) -> KeysView[str]: ...

    def items(self) -> ItemsView[str, Any]: ...


class StockScheduler(Protocol):
    """What every scheduler has; `step` takes and returns what its own class says."""

    timesteps: Tensor
    step: Callable[..., Any]

    @property
    def config(self) -> Config: ...

    def set_timesteps(self, steps: int, /) -> None: ...

    def save_pretrained(self, folder: str | PathLike[str], /) -> None: ...


class DiscreteScheduler(StockScheduler, Protocol):
    """A scheduler of a discrete process, whose signal powers [N] fall with the timestep."""

    alphas_cumprod: Tensor


class StockPipeline(Protocol):
    """What every pipeline has; the arguments of its call are its own class's."""

    scheduler: StockScheduler

    def __init__(self, **parts: Any) -> None: ...

    def __call__(self, **arguments: Any) -> BaseOutput: ...

    @property
    def config(self) -> Config: ...

    @property
    def components(self) -> MutableMapping[str, Any]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *where: str | torch.device | torch.dtype) -> Self: ...

    def register_modules(self, **parts: Any) -> None: ...

    def set_progress_bar_config(self, **settings: Any) -> None: ...

    def save_pretrained(self, folder: str | PathLike[str], /, *, safe_serialization: bool) -> None: ...

    def save_config(self, folder: str | PathLike[str], /) -> None: ...


class SingleFilePipeline(StockPipeline, Protocol):
    """A pipeline whose class can be read from one file."""

    @classmethod
    def from_single_file(cls, file: str, /, **settings: Any) -> Self: ...


class LoRAPipeline(StockPipeline, Protocol):
    """A pipeline whose class reads and writes LoRAs of its parts."""

    def load_lora_weights(self, weights: Any, /, **settings: Any) -> None: ...

    def unload_lora_weights(self) -> None: ...

    @classmethod
    def save_lora_weights(cls, folder: str | PathLike[str], /, **weights: Any) -> None: ...


def reads_loras(pipe: StockPipeline) -> TypeGuard[LoRAPipeline]:
    """Whether the pipeline's class has a loader of LoRAs."""
    return hasattr(pipe, "load_lora_weights")
