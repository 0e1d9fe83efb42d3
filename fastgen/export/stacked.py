"""A LoRA among others on one base."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StackedLoRA:
    """A LoRA file and its weight, as `load_lora_weights` and `set_adapters` take them.

    Args:
        second: it belongs to the second of two denoisers.
    """

    folder: str
    file: str
    weight: float = 1.0
    second: bool = False
