"""A compiler that counts: graphs are traced and differentiated as by PyTorch's own, and run operation by operation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager


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
