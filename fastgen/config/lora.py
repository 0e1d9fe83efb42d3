"""Roles on one frozen network: which of them share it, what it is held in, and their adapters."""

from typing import Annotated, Literal

from pydantic import Field

from .strict import Strict

Base = Literal["fp32", "bf16", "fp8", "int8", "nf4"]
Sharing = Literal["full", "lora", "scores"]


class LoRAConfig(Strict):
    """Roles on one frozen network (`sharing: lora` or `scores`): each trains a low-rank adapter of its own.

    rank, alpha: the updates are alpha / rank times B A; alpha is the rank where it is not given.
    targets: layers to adapt: ends of their names, or regular expressions; the attention and feed-forward layers if
        not given.
    norms: each role also has norm layers and biases of its own.
    keys: key formats of the exported LoRA's files: diffusers, kohya (kohya-ss, ComfyUI; for Stable Diffusion, SDXL
        and Flux); if not given, all that are known for the network.
    base: dtype of the frozen network; auto is bf16 where all stages have precision bf16, and fp32 otherwise. fp8 halves
        its memory and needs no other package; int8 and nf4 need bitsandbytes. All three are slower than bf16.
    """

    rank: Annotated[int, Field(gt=0, le=2**16)] = 64
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    norms: bool = False
    keys: Annotated[tuple[Literal["diffusers", "kohya"], ...], Field(min_length=1)] | None = None
    base: Base | Literal["auto"] = "auto"
