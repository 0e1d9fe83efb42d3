"""Images or videos to what the denoiser works in, and back.

Between a pipeline's last sample and its autoencoder lie packing, patches, an order of axes and a normalisation, in
every family another. All of them move single elements and scale and shift each: z = scale * x[source] + shift. So
they are not written down per family but read off: the stock loop runs with its last sample replaced by known numbers,
and what it hands to `vae.decode` shows where each of them went. A random sample then checks what was read.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from inspect import signature
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor

from ...errors import UserError
from .arguments import classifier_free, conditioning_kind, parameters
from .canonical import unit
from .components import autoencoder_of, denoisers_of, network_of
from .identity import digest_of
from .selftest import tolerance
from .stock_pipeline import StockPipeline
from .watch import Answer, replaced, silent, undisturbed, unshared
from .wiring import Wiring

IMAGES_AT_ONCE = 4  # images through the autoencoder together, if they are small; videos go one by one
MOST = 2**17  # values of the samples that go together: two of SDXL at 1024 px
_BASE = 32  # base of the digits that number elements: bfloat16 tells as many apart after scaling
_PLUMBING = ("return_dict", "generator")


class Codec(Protocol):
    """Encodes images [B, C, H, W] or videos [B, C, F, H, W] in [-1, 1] into samples [B, ...] and decodes these.

    Attributes:
        identity: hash of all that an image's sample depends on but the image.
    """

    @property
    def identity(self) -> str: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...

    def images_of(self, x0: Tensor) -> Tensor:
        """Decodes as `decode` does, and keeps the graph to x0."""
        ...


class PixelCodec:
    """The denoiser works on pixels."""

    identity = "pixels"

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)

    def images_of(self, x0: Tensor) -> Tensor:
        return self.decode(x0)


@contextmanager
def _untuned() -> Iterator[None]:
    """Within, cuDNN tries no kernels out: at the size of images their workspaces take tens of GiB for a moment."""
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tuned


class LatentCodec:
    """The denoiser works on an autoencoder's latents, wired as the pipeline has it; float32 outside.

    Args:
        vae: frozen here; in its own dtype and on its own device, but float32 where float16 is known to overflow.
        wiring: map between samples and latents of one size.
        shape: shape of one sample.
        extras: further arguments of `vae.decode`, for one sample.
    """

    def __init__(self, vae: Any, wiring: Wiring, shape: torch.Size, extras: Mapping[str, Any]) -> None:
        self.vae, self.wiring, self.shape, self.extras = vae.requires_grad_(False).eval(), wiring, shape, extras
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.float()

    @cached_property
    def identity(self) -> str:
        config = {name: value for name, value in self.vae.config.items() if not name.startswith("_")}
        told = [type(self.vae).__name__, diffusers.__version__, config, self.shape, self.wiring.latents]
        digest = digest_of(told, {**self.vae.state_dict(), **self.wiring.tensors})
        return digest.hexdigest()

    @torch.no_grad()
    @_untuned()
    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self._encode(part) for part in images.split(self._at_once)]).to(images.device)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        return self.images_of(x0)

    @_untuned()
    def images_of(self, x0: Tensor) -> Tensor:
        return torch.cat([self._decode(part) for part in x0.split(self._at_once)]).to(x0.device)

    @property
    def _at_once(self) -> int:
        frames = len(self.wiring.latents) == 5 and self.wiring.latents[2]
        video = frames > 1 or self.wiring.latents[0] > 1
        return 1 if video else max(1, min(IMAGES_AT_ONCE, MOST // self.shape.numel()))

    def _encode(self, images: Tensor) -> Tensor:
        if len(self.wiring.latents) == 5:
            images = images if images.ndim == 5 else images.unsqueeze(2)
        elif images.ndim == 5:
            images = images.transpose(1, 2).flatten(0, 1)
        encoded = self.vae.encode(images.to(self.vae.device, self.vae.dtype))
        z = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
        return self.wiring.to_samples(z, self.shape)

    def _decode(self, x0: Tensor) -> Tensor:
        z = self.wiring.to_latents(x0.to(self.vae.device)).to(self.vae.dtype)
        images: Tensor = self.vae.decode(z, **self.extras, return_dict=False)[0].float().clamp(-1, 1)
        frames = self.wiring.latents[0]
        if frames > 1:
            images = images.unflatten(0, (-1, frames)).transpose(1, 2)
        elif self._frames_first(images):
            images = images.transpose(1, 2)
        return images.squeeze(2) if images.ndim == 5 else images

    def _frames_first(self, images: Tensor) -> bool:
        """Whether what was decoded is [B, F, C, H, W], as Allegro's autoencoder has it; it encodes [B, C, F, H, W]."""
        colours = self.vae.config.get("out_channels")
        return images.ndim == 5 and images.shape[1] != colours == images.shape[2]


def codec_of(pipe: StockPipeline, call: Mapping[str, Any] | None = None) -> Codec:
    """The pipeline's own autoencoder with the wiring that the pipeline has at one size, or none for pixels.

    Costs a few calls of the text encoders, which must still be there; the denoiser is not run.

    Args:
        call: the call's own arguments for one sample, e.g. `prompt`, and for its size; None is any sample of the
            pipeline's default size.

    Raises:
        UserError: what the pipeline decodes is not its sample rearranged and scaled.
    """
    vae = autoencoder_of(pipe)
    if vae is None:
        return PixelCodec()
    with _in_float32(vae), _posing(pipe, vae, {**_anyone(pipe), **(call or {})}) as decoded:
        shape, wiring, extras = _read(type(pipe).__name__, decoded, tolerance(network_of(pipe)))
    return LatentCodec(vae, wiring, shape, extras)


@dataclass(frozen=True)
class Decoded:
    """What the stock loop handed to `vae.decode` for one sample: latents, further arguments, the sample's shape."""

    z: Tensor
    extras: dict[str, Any]
    shape: torch.Size


Decode = Callable[[Callable[[int], Tensor]], Decoded]  # from a sample's flat values, given their number


def _read(name: str, decoded: Decode, allowed: float) -> tuple[torch.Size, Wiring, dict[str, Any]]:
    """Zeros show the shift, ones the scale, and the digits of each element's number where it went."""
    zero = decoded(torch.zeros)
    shift = zero.z.flatten()
    scale = decoded(torch.ones).z.flatten() - shift
    if not scale.all():
        raise _failure(name, f"{int((scale == 0).sum())} of its {len(scale)} latents do not depend on the sample")
    count = zero.shape.numel()
    source = torch.zeros(len(shift), dtype=torch.int64, device=shift.device)
    for place in (_BASE**power for power in range(math.ceil(math.log(max(count, 2), _BASE)))):
        digits = decoded(partial(_digits, place=place)).z.flatten()
        source += place * ((digits - shift) / scale).round().long()
    reached = len(source.clamp(0, count - 1).unique())
    if len(source) != count or reached != count:
        raise _failure(name, f"{reached} of a sample's {count} elements reach its {len(source)} latents")
    wiring = Wiring(zero.z.shape, source, scale, shift)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(0))
    theirs = decoded(lambda _: noise).z
    gap = (wiring.to_latents(noise[None].to(theirs.device)) - theirs).abs().max() / theirs.abs().max()
    if not gap <= allowed:
        raise _failure(name, f"a random sample differs by {float(gap):.2g} of its largest, allowed is {allowed:.2g}")
    return zero.shape, wiring, zero.extras


def _digits(count: int, *, place: int) -> Tensor:
    """The digit at that place of the numbers from 0, [count]."""
    return (torch.arange(count) // place % _BASE).float()


def _failure(name: str, measured: str) -> UserError:
    return UserError(
        f"{name} cannot be trained with images: what it decodes is not its sample rearranged, scaled and shifted "
        f"({measured}). Use an objective and a data source without images, or write a Codec for it"
    )


class _Stop(Exception):
    """The autoencoder was reached."""


@contextmanager
def _posing(pipe: StockPipeline, vae: Any, call: Mapping[str, Any]) -> Iterator[Decode]:
    """Within, the stock loop can be run with its samples replaced; its denoiser is not run."""
    networks, gain = list(denoisers_of(pipe).values()), unit(pipe.scheduler)
    forward, step, told = networks[0].forward, pipe.scheduler.step, signature(vae.decode)
    asked, zeros = signature(forward), silent(pipe)
    decoded: list[Decoded] = []

    @wraps(forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        return zeros(asked.bind(*args, **kwargs))

    def run(values: Callable[[int], Tensor]) -> Decoded:
        shapes: list[torch.Size] = []

        @wraps(step)
        def pose(_output: Tensor, _timestep: Any, sample: Tensor, *_: Any, **__: Any) -> Answer:
            shapes.append(sample.shape[1:])
            x = gain * values(shapes[0].numel()).to(sample.device).reshape(1, *shapes[0])
            return Answer([x, x])

        def stop(*args: Any, **kwargs: Any) -> Any:
            z, *extras = told.bind(*args, **kwargs).arguments.items()
            kept = {name: value for name, value in extras if name not in _PLUMBING and value is not None}
            decoded.append(Decoded(z[1].float(), kept, shapes[0]))
            raise _Stop

        with replaced(pipe.scheduler, "step", pose), replaced(vae, "decode", stop):
            try:
                pipe(**unshared(call))
            except _Stop:
                return decoded.pop()
        raise _failure(type(pipe).__name__, "its call did not reach its autoencoder")

    with ExitStack() as within:
        for net in networks:
            within.enter_context(replaced(net, "forward", answer))
        within.enter_context(undisturbed(pipe))
        yield run


@contextmanager
def _in_float32(vae: Any) -> Iterator[None]:
    """Within, latents are not rounded to the autoencoder's dtype; afterwards it has its own tensors again."""
    weights = [(parameter, parameter.data) for parameter in vae.parameters()]
    buffers = [(part, name, value) for part in vae.modules() for name, value in part.named_buffers(recurse=False)]
    vae.float()
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for part, name, value in buffers:
            setattr(part, name, value)


def _anyone(pipe: StockPipeline) -> dict[str, Any]:
    """The call's arguments for one sample of whatever, in two steps, undisturbed by guidance or chunks."""
    takes = parameters(pipe)
    who: dict[str, dict[str, Any]] = {"none": {}, "label": {"class_labels": [0]}, "prompt": {"prompt": ["a"]}}
    fixed = {"num_inference_steps": 2, "decode_chunk_size": 10**6}
    taken = {name: value for name, value in fixed.items() if name in takes}
    return {**who[conditioning_kind(pipe)], **classifier_free(pipe, 1.0), **taken}
