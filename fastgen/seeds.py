"""Random streams as a function of the seed and the position in the run: nothing to save, nothing to drift.

Every micro-batch has a stream of its own. Two processes with one micro-batch each therefore draw what one process
with two micro-batches draws, and a resumed run draws what it would have drawn.
"""

import hashlib

import torch


def stream(device: torch.device, *position: int | str) -> torch.Generator:
    """The generator of a position, on a device."""
    return torch.Generator(device).manual_seed(seed_of(*position))


def seed_of(*position: int | str) -> int:
    """63 bits that depend on every part of the position: what any generator takes as its seed."""
    return hash_of(*position) >> 1


def hash_of(*position: int | str) -> int:
    """64 bits that depend on every part of the position, equal on every machine, in every process and version."""
    return int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=8).digest(), "little")
