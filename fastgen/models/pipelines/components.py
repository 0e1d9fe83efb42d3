"""The components of a stock pipeline by what they are for: those that denoise, and the autoencoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from itertools import islice
from typing import Any

from torch import nn

from ...errors import UserError
from ..experts import Experts, networks_in
from .stock_pipeline import StockPipeline

NETWORKS = ("transformer", "unet")  # the names of the components that denoise
SECOND = "transformer_2"  # beside it, where a pipeline has `boundary_ratio`


def denoiser_name(pipe: StockPipeline) -> str:
    """The name of the component that denoises.

    Raises:
        UserError: the pipeline has none.
    """
    for name in NETWORKS:
        if isinstance(pipe.components.get(name), nn.Module):
            return name
    raise UserError(
        f"{type(pipe).__name__} has neither a `unet` nor a `transformer`, so there is nothing to distil; its parts "
        f"are {', '.join(pipe.components)}"
    )


def denoisers_of(pipe: StockPipeline) -> dict[str, Any]:
    """The components that denoise: one, or two of which the first has the noisier times; raises as `denoiser_name`."""
    second = [SECOND] if pipe.config.get("boundary_ratio") is not None and pipe.components.get(SECOND) else []
    return {name: pipe.components[name] for name in [denoiser_name(pipe), *second]}


def network_of(pipe: StockPipeline) -> Any:
    """What denoises: a component, or two of them as one; raises as `denoiser_name`."""
    first, *second = denoisers_of(pipe).values()
    if not second:
        return first
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return Experts(first, *second, boundary=boundary)


def parts_of(pipe: StockPipeline, network: nn.Module) -> dict[str, nn.Module]:
    """Another network like the pipeline's as its components, by name."""
    return dict(zip(denoisers_of(pipe), networks_in(network).values(), strict=True))


def rebuilt(pipe: StockPipeline, **parts: Any) -> StockPipeline:
    """The pipeline as its class builds it with other parts; DDIMPipeline makes a DDIM of any scheduler it is given."""
    takes = signature(type(pipe).__init__).parameters
    settings = {name: value for name, value in pipe.config.items() if name in takes and name not in pipe.components}
    return type(pipe)(**{**settings, **pipe.components, **parts})


def encoders_of(pipe: StockPipeline) -> list[nn.Module]:
    """The components that encode prompts: all networks that neither denoise nor decode."""
    others = (*denoisers_of(pipe).values(), autoencoder_of(pipe))
    networks = [part for _, part in sorted(pipe.components.items()) if isinstance(part, nn.Module)]
    return [part for part in networks if not any(part is other for other in others)]


def wake(pipe: StockPipeline) -> None:
    """Puts the text encoders on the denoiser's device, where a stock call wants them."""
    device = next(network_of(pipe).parameters()).device
    for encoder in encoders_of(pipe):
        encoder.to(device)


def rest(pipe: StockPipeline) -> None:
    """Puts the text encoders into main memory, so that they lie on no device beside a denoiser that runs."""
    for encoder in encoders_of(pipe):
        encoder.to("cpu")


@contextmanager
def woken(pipe: StockPipeline) -> Iterator[None]:
    """Within, the text encoders are on the denoiser's device, or rest while it runs; afterwards where they were."""
    homes = [(part, weight.device) for part in encoders_of(pipe) for weight in islice(part.parameters(), 1)]
    wake(pipe)
    try:
        yield
    finally:
        for part, home in homes:
            part.to(home)


def autoencoder_of(pipe: StockPipeline) -> Any:
    """The component that encodes and decodes images, whatever its name; None for a pipeline of pixels."""
    networks = (part for part in pipe.components.values() if isinstance(part, nn.Module))
    return next((part for part in networks if hasattr(part, "encode") and hasattr(part, "decode")), None)
