"""A ComfyUI workflow beside a LoRA, in its API form: nodes that sample at the stops that were trained for.

As in ComfyUI (nodes.py, comfy_extras/nodes_custom_sampler.py, comfy/k_diffusion/sampling.py) a discrete model's sigma
is sigma / alpha, a flow's is the noise level itself; `lcm` predicts x0 and draws fresh noise, `euler` is the
deterministic step. Guidance of 1 calls the network once.
"""

from dataclasses import dataclass
from typing import Any

from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn

from ..models.pipelines.notes import Notes, Stop

FILE = "comfyui_workflow.json"
SAMPLERS = {"renoise": "lcm", "ode": "euler"}
_FLOW = 1e-6

Node = dict[str, Any]
Output = list[Any]
"""The number of a node, and which of its outputs."""


def workflow(network: nn.Module, notes: Notes, *, lora: str, size: tuple[int, int]) -> dict[str, Node] | None:
    """The workflow, by numbers of nodes; None where the network or its stops are none that ComfyUI would be told so.

    Args:
        notes: of the student; the first of its step counts is sampled.
        lora: name of the LoRA's file below ComfyUI's `models/loras`.
        size: height and width in pixels.
    """
    stops = notes.stops.get(notes.steps[0], ())
    base = _loaders(network)
    if base is None or notes.sampler is None or not stops or any(stop.alpha == 0 for stop in stops):
        return None
    height, width = size
    return base.nodes | {
        "10": _node("LoraLoaderModelOnly", model=base.model, lora_name=lora, strength_model=1.0),
        "11": _node("CLIPTextEncode", clip=base.clip, text="a photo of a cat"),
        "12": _node("CLIPTextEncode", clip=base.clip, text=""),
        "13": _node(_LATENTS[type(network)], width=width, height=height, batch_size=1),
        "14": _node("KSamplerSelect", sampler_name=SAMPLERS[notes.sampler]),
        "15": _node("ManualSigmas", sigmas=", ".join(f"{sigma:.7g}" for sigma in [*map(sigma_of, stops), 0.0])),
        "16": _node(
            "SamplerCustom",
            model=["10", 0],
            add_noise=True,
            noise_seed=0,
            cfg=1.0,
            positive=["11", 0],
            negative=["12", 0],
            sampler=["14", 0],
            sigmas=["15", 0],
            latent_image=["13", 0],
        ),
        "17": _node("VAEDecode", samples=["16", 0], vae=base.vae),
        "18": _node("SaveImage", images=["17", 0], filename_prefix="fewstep"),
    }


def sigma_of(stop: Stop) -> float:
    """What ComfyUI calls sigma there."""
    flow = abs(stop.alpha + stop.sigma - 1) < _FLOW
    return stop.sigma if flow else stop.sigma / stop.alpha


@dataclass(frozen=True)
class Base:
    """The nodes that load a LoRA's base, and which outputs of theirs are its model, text encoders and autoencoder."""

    nodes: dict[str, Node]
    model: Output
    clip: Output
    vae: Output


def _loaders(network: nn.Module) -> Base | None:
    """What loads the base of a network; None of one that ComfyUI would load otherwise."""
    if isinstance(network, UNet2DConditionModel):
        nodes = {"1": _node("CheckpointLoaderSimple", ckpt_name="base.safetensors")}
        return Base(nodes, model=["1", 0], clip=["1", 1], vae=["1", 2])
    if isinstance(network, FluxTransformer2DModel):
        nodes = {
            "1": _node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
            "2": _node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl.safetensors", type="flux"),
            "3": _node("VAELoader", vae_name="ae.safetensors"),
        }
        return Base(nodes, model=["1", 0], clip=["2", 0], vae=["3", 0])
    return None


_LATENTS: dict[Any, str] = {
    UNet2DConditionModel: "EmptyLatentImage",
    FluxTransformer2DModel: "EmptySD3LatentImage",
}


def _node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}
