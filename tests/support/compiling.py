"""A compiler that counts: graphs are traced and differentiated as by PyTorch's own, and run operation by operation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager

from benchmarks.networks import Size

LEVELS = Size(
    "UNet2DModel",
    {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "num_class_embeds": 11,
    },
    (3, 8, 8),
    {"class_labels": ()},
    {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
)
"""A network of the CIFAR-size one's kinds of levels, with and without attention, down and up."""

SMALL = Size(
    "UNet2DModel",
    {
        "sample_size": 8,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "add_attention": False,
        "norm_num_groups": 4,
        "num_class_embeds": 11,
    },
    (3, 8, 8),
    {"class_labels": ()},
    {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
)
"""A network whose blocks are all regions, since no four of them are alike."""


class Compiler:
    """A backend that leaves the arithmetic as it was written.

    Args:
        count: how many graphs it was given.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Any:
        self.count += 1
        return aot_eager(graph, inputs)


@contextmanager
def compiling() -> Iterator[Compiler]:
    """Within, all that is compiled goes to a `Compiler`, and nothing is known of before."""
    torch.compiler.reset()
    compiler = Compiler()
    with torch.compiler.set_stance("default", force_backend=compiler):
        yield compiler
    torch.compiler.reset()
