"""A stock pipeline without weights: its networks are on PyTorch's meta device, made of their configs alone.

Within `answering`, the pipeline's own call runs on the CPU as always, and each network answers it with zeros of the
shapes, dtypes and structure that it would answer with, so that a probe sees what is told to whom.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ...errors import UserError
from ...limits import read_json
from ..casting import cast
from .components import autoencoder_of
from .folders import INDEX, check_is_pipeline
from .foreign import check_pipeline, unasked
from .loading import HUB_FAILURES, HUB_ID, line, missing
from .stock_pipeline import StockPipeline

CPU, NOWHERE = torch.device("cpu"), torch.device("meta")
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja")
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def weightless(path: str, *, dtype: torch.dtype, revision: str | None = None) -> StockPipeline:
    """The pipeline of a folder or hub id; of a hub id only configs and tokenizers are downloaded.

    Args:
        dtype: dtype that its networks would be loaded in.

    Raises:
        UserError: there is no such pipeline here, and the hub does not give its configs.
    """
    folder = configs_of(path, revision=revision)
    check_is_pipeline(folder)
    check_pipeline(folder)
    try:
        index = read_json(folder / INDEX)
        entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
        networks = {name: network for name, entry in entries.items() if (network := _network(folder, name, *entry))}
        made = {name: cast(network, dtype).eval() for name, network in networks.items()}
        with unasked():
            pipe: StockPipeline = DiffusionPipeline.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, **made
            )
    except Exception as error:  # whatever a foreign folder can raise, the remedy is in the folder
        raise UserError(
            f"{folder} is not a pipeline whose configs could be read ({type(error).__name__}: {line(error)}): give the "
            "folder that save_pretrained wrote for the whole pipeline"
        ) from error
    return pipe


def configs_of(path: str, *, revision: str | None = None) -> Path:
    """The folder with a pipeline's configs, of a hub id from the cache or the hub; raises as `weightless`."""
    folder = Path(path)
    if folder.exists():
        return folder
    if not HUB_ID.fullmatch(path):
        raise missing(path)
    wanted = [name for kind in CONFIGS for name in (kind, f"*/{kind}")]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except HUB_FAILURES as error:
        raise UserError(
            f"{path!r} is neither a folder here nor in the hub's cache, and the hub would not give its configs "
            f"({line(error)}): give a folder, or go online; weights are not needed"
        ) from error


def networks_of(pipe: StockPipeline) -> dict[str, nn.Module]:
    """The networks among a pipeline's components, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@contextmanager
def answering(pipe: StockPipeline) -> Iterator[None]:
    """Within, networks without weights answer with zeros on the CPU, and say that they are there.

    So do the autoencoder's buffers, by which pipelines normalise samples.
    """
    networks = networks_of(pipe).values()
    kinds = [type(network) for network in networks]
    autoencoder = autoencoder_of(pipe)
    normalising = _Buffers([] if autoencoder is None else [autoencoder])
    try:
        for network, kind in zip(networks, kinds, strict=True):
            network.__class__ = _answering(kind, normalising)
        normalising.place(CPU)
        yield
    finally:
        normalising.place(NOWHERE)
        for network, kind in zip(networks, kinds, strict=True):
            network.__class__ = kind


class _Buffers:
    """Buffers without values that are there, as ones, while they are on the CPU."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        modules = [module for network in networks for module in network.modules()]
        self._owned = [
            (module, name, buffer)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_meta
        ]

    def place(self, device: torch.device) -> None:
        """Puts all of them on the CPU, or back to where they have no values."""
        for module, name, buffer in self._owned:
            module._buffers[name] = buffer if device == NOWHERE else torch.ones_like(buffer, device=device)


def _answering(kind: type[nn.Module], normalising: _Buffers) -> type[nn.Module]:
    """A network's class as it answers for another device than that of its parameters."""

    def elsewhere(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def answer(*args: Any, **kwargs: Any) -> Any:
            told_args, told = tree_map(lambda x: x.to(NOWHERE) if isinstance(x, Tensor) else x, (args, kwargs))
            normalising.place(NOWHERE)
            with Guessing():
                output = method(*told_args, **told)
            normalising.place(CPU)
            return tree_map(lambda x: torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x, output)

        return answer

    own: dict[str, Any] = {
        name: elsewhere(getattr(kind, name)) for name in ("forward", "encode", "decode") if hasattr(kind, name)
    }
    own |= {"device": property(lambda _: CPU), "to": lambda network, *_, **__: network}
    return type(kind.__name__, (kind,), {**own, "__module__": kind.__module__})


class Guessing(TorchFunctionMode):
    """Within, a value that a tensor without values is asked for is one: code that asks goes either way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKING and args[0].is_meta:
            return _ASKING[func]
        return func(*args, **(kwargs or {}))


_ASKING: dict[Any, Any] = {
    Tensor.item: 1,
    Tensor.__bool__: True,
    Tensor.__int__: 1,
    Tensor.__index__: 1,
    Tensor.__float__: 1.0,
    torch.equal: False,
    Tensor.equal: False,
}


def _network(folder: Path, name: str, library: str | None, kind: str | None, *_: Any) -> nn.Module | None:
    """A network of its config alone; None for a component of another kind."""
    made: Any = getattr(LIBRARIES.get(library or ""), kind or "", None)
    if made is None or not issubclass(made, nn.Module):
        return None
    with torch.device(NOWHERE):
        if library == "diffusers":
            network: nn.Module = made.from_config(made.load_config(folder, subfolder=name))
        else:
            network = made(made.config_class.from_pretrained(folder / name))
    return network
