"""Images of twice the resolution, written so that compiled code sums a gradient where it lies.

PyTorch's compiler turns upsampling to the nearest neighbour into reading by indices. The gradient is then scattered by
atomic additions, which come in no fixed order. As copies of rows and columns it is a sum of four neighbours.
"""

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn.functional import interpolate

from .joins import Pass


class DoublingAsCopies(Pass):
    """Replaces doublings by copies of pixels; runs before a graph is differentiated."""

    def __call__(self, graph: Graph) -> None:
        found = filter(_doubles, graph.find_nodes(op="call_function", target=interpolate))
        for node in list(found):  # all of them before one is replaced, by nodes whose shapes nobody knows
            with graph.inserting_before(node):
                node.replace_all_uses_with(_copied(graph, _told(node)["input"]))
            graph.erase_node(node)


def _told(node: Node) -> dict[str, Any]:
    """The first arguments of a call of `interpolate`, by name."""
    return dict(zip(("input", "size", "scale_factor", "mode"), node.args, strict=False)) | node.kwargs


def _doubles(node: Node) -> bool:
    """Whether a node doubles an image by copying each pixel to four."""
    given = _told(node)
    source = given.get("input")
    image = isinstance(source, Node) and getattr(source.meta.get("example_value"), "ndim", 0) == 4
    return image and given.get("scale_factor") == 2 and given.get("mode", "nearest") == "nearest"


def _copied(graph: Graph, image: Node) -> Node:
    """An image [B, C, H, W] of twice the resolution: rows and columns are repeated by `expand`."""
    apart = graph.call_method("unsqueeze", (graph.call_method("unsqueeze", (image, 3)), 5))
    copies = graph.call_method("expand", (apart, -1, -1, -1, 2, -1, 2))
    joined = graph.call_method("flatten", (graph.call_method("flatten", (copies, 4, 5)), 2, 3))
    return graph.call_method("contiguous", (joined,), {"memory_format": torch.channels_last})
