"""Every matrix product rounds by where its weight lies in memory, as a BLAS may: `pytest --elsewhere`.

A network is still its own repetition bit for bit. Two networks of equal weights at two addresses agree to rounding
only, as on processors whose kernels depend on alignment; a test that asks for more fails with this on every machine.
"""

import struct
import zlib

import torch
from torch import nn

STEP = 2.0**-23  # a unit in the last place of a float32


def _rounded(module: nn.Module, _inputs: tuple, output: object) -> object:
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, torch.Tensor):
        return output
    if not isinstance(output, torch.Tensor) or output.dtype != torch.float32:
        return output
    place = zlib.crc32(struct.pack("q", weight.data_ptr()))
    return output * (1 + STEP * (place % 3 - 1))


def install() -> None:
    """From now on, for all networks of this process."""
    nn.modules.module.register_module_forward_hook(_rounded)
