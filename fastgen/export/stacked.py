"""A LoRA among others on one base."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StackedLoRA:
    """A LoRA file and its weight, as `load_lora_weights` and `set_adapters` take them."""

    folder: str
    file: str
    weight: float = 1.0
