"""Every pipeline family that the tests know: tiny, offline, with seeded random weights.

`FAMILIES["flux"].build()` gives the stock pipeline, and `pipe(**call, **family.size)` its smallest sensible sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import families_image as image
import families_packed as packed
import families_video as video
import tiny
import torch
from diffusers import DiffusionPipeline

from fastgen.models.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class Family:
    """A pipeline's builder and the arguments by which its call sets the size of a sample."""

    name: str
    builder: Callable[[], DiffusionPipeline]
    size: dict[str, int] = field(default_factory=dict)

    def build(self) -> DiffusionPipeline:
        """The same weights at every call; no part of the denoiser is asleep; no progress bar."""
        torch.manual_seed(0)
        pipe = self.builder()
        for network in (denoiser(pipe), pipe.components.get("transformer_2")):
            if network is not None:
                awaken(network)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def denoiser(pipe: DiffusionPipeline) -> torch.nn.Module:
    """The network that is trained."""
    return pipe.components.get("transformer") or pipe.unet


def awaken(network: torch.nn.Module) -> None:
    """Parameters that start at zero are drawn, so that the output depends on every input; in eval mode."""
    for parameter in network.eval().parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


SQUARE = {"height": 16, "width": 16}
LARGE = {"height": 32, "width": 32}  # the least that these pipelines take
BRIEF = {"max_sequence_length": 16}  # of the text; by themselves these pipelines pad every prompt to 128 tokens or 512
UNBINNED = {"use_resolution_binning": False}  # else the sample is as large as the nearest size of real training

NAMED = (
    Family("ddpm", tiny.ddpm),
    Family("consistency", lambda: tiny.consistency(num_class_embeds=tiny.CLASSES)),
    Family("dit", image.dit),
    Family("stable_diffusion", tiny.stable_diffusion, SQUARE),
    Family("sdxl", image.sdxl, SQUARE),
    Family("sd3", image.sd3, SQUARE),
    Family("flux", packed.flux, SQUARE | BRIEF),
    Family("flux2", packed.flux2, SQUARE | BRIEF),
    Family("flux2_klein", packed.flux2_klein, SQUARE | BRIEF),
    Family("pixart_alpha", image.pixart_alpha, SQUARE | UNBINNED),
    Family("pixart_sigma", image.pixart_sigma, SQUARE | UNBINNED),
    Family("sana", image.sana, LARGE | UNBINNED),
    Family("sana_sprint", image.sana_sprint, LARGE | UNBINNED),
    Family("qwen_image", packed.qwen_image, SQUARE),
    Family("z_image", image.z_image, SQUARE),
    Family("lumina2", image.lumina2, LARGE),
    Family("aura_flow", image.aura_flow, SQUARE),
    Family("hidream", image.hidream, SQUARE | BRIEF),
    Family("chroma", packed.chroma, SQUARE | BRIEF),
    Family("ltx", video.ltx, LARGE | {"num_frames": 3}),
    Family("wan", video.wan, SQUARE | {"num_frames": 5}),
    Family("wan_of_two", video.wan_of_two, SQUARE | {"num_frames": 5}),
    Family("cogvideox", video.cogvideox, SQUARE | {"num_frames": 5}),
    Family("hunyuan_video", video.hunyuan_video, SQUARE | {"num_frames": 5}),
)

UNSEEN = (
    Family("krea2", packed.krea2, SQUARE),
    Family("cogview4", image.cogview4, SQUARE),
    Family("latte", video.latte, SQUARE | {"video_length": 2}),
)

FAMILIES = {family.name: family for family in (*NAMED, *UNSEEN)}


@cache
def probed(name: str) -> Pipeline:
    """The family seen through the probe, once for all tests, which leave it as it is."""
    return Pipeline(FAMILIES[name].build(), size=FAMILIES[name].size)
