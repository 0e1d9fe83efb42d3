r"""Operations of one call at real size, counted on tensors without values: no GPU and no memory is needed.

    python -m benchmarks.operations --size sdxl --rank 64

Views are left out, since they launch nothing; flash attention, a norm and a convolution are one operation each.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen.models.adapters import Adaptation, SharedNetwork

from .networks import SIZES
from .watches import Operations


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Counts and prints."""
    told = _parser().parse_args(arguments)
    with FakeTensorMode(allow_non_fake_inputs=True):
        counts = _counts(told.size, told.rank, told.batch)
    print(json.dumps(counts, indent=2))
    return counts


def _counts(size: str, rank: int, batch: int) -> dict[str, Any]:
    network, dtype, cpu = SIZES[size], torch.bfloat16, torch.device("cpu")
    net = network.built(cpu, dtype)
    shared = SharedNetwork(net, ["generator"], Adaptation(rank))
    x = torch.randn((batch, *network.shape), dtype=dtype)
    t, cond = torch.full((batch,), 500.0), network.rows(batch, dtype).kwargs

    def call() -> Tensor:
        output: Tensor = net(x, t, **cond, return_dict=False)[0]
        return output

    shared.banks["generator"].requires_grad_(True)
    counts: dict[str, Any] = {}
    with torch.no_grad():
        counts["base"] = _counted(call)
        with shared.acting("generator"):
            counts["adapter"] = _counted(call)
    for name in ("stored", "checkpointed"):
        with shared.acting("generator"):
            loss = call().float().square().mean()
        counts[f"backward, {name}"] = _counted(loss.backward)
        shared.banks["generator"].collect()
        shared.checkpoint_blocks()
    return counts


def _counted(call: Callable[[], Any]) -> dict[str, Any]:
    with Operations() as operations:
        call()
    return {"all": operations.counted.total(), "most": dict(operations.counted.most_common(12))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
