"""The two verbs by which a network is asked what it believes, and classifier-free guidance over either."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..process import Latent, Prediction, Time, joined
from .conditioning import Conditioning
from .contract import Denoiser

Scalars = Mapping[str, Tensor]
"""Further values [B] by name that a network is told beside its time."""

Verb = Callable[[Denoiser, Latent, Time, Conditioning, Scalars], Prediction]

LARGE = 2**16
"""Values of a large sample (SDXL at 1024 px): a few of them fill a GPU, and a guidance pair need not be one call."""
NONE: Scalars = {}


def search_convolutions(shape: torch.Size) -> None:
    """Lets cuDNN time its convolutions before it chooses one, for samples that are not large.

    With large maps the trials themselves take much memory.

    Args:
        shape: of one sample.
    """
    torch.backends.cudnn.benchmark = shape.numel() < LARGE


def look(model: Denoiser, x_t: Latent, t: Time, cond: Conditioning, scalars: Scalars = NONE) -> Prediction:
    """The model's belief, evaluated without autograd."""
    with torch.no_grad():
        return model(x_t, t, cond, scalars)


def through(model: Denoiser, x_t: Latent, t: Time, cond: Conditioning, scalars: Scalars = NONE) -> Prediction:
    """The model's belief with the graph to x_t kept; its parameters are frozen unless it is its turn."""
    return model(x_t, t, cond, scalars)


def guided(
    call: Verb, model: Denoiser, x_t: Latent, t: Time, cond: Conditioning, scalars: Scalars = NONE, *, w: float
) -> Prediction:
    """The belief under classifier-free guidance; w = 1 is a plain call, w = 0 an unconditional one.

    The two are combined by the denoiser's own `guide`. Both go in one call, but those of several large samples one
    after the other, which takes less memory.
    """
    if w in (0, 1):
        return call(model, x_t, t, cond if w else cond.unconditional, scalars)
    if len(x_t) > 1 and x_t[0].numel() >= LARGE:
        null = call(model, x_t, t, cond.unconditional, scalars)
        return model.guide(call(model, x_t, t, cond, scalars), null, w)
    both = Conditioning.cat([cond, cond.unconditional])
    twice = {name: torch.cat([value, value]) for name, value in scalars.items()}
    halves = call(model, torch.cat([x_t, x_t]), joined([t, t]), both, twice).split(len(t))
    conditional, null = (
        replace(half, t=t) for half in halves
    )  # t remembers its noise levels, a part of `joined` does not
    return model.guide(conditional, null, w)
