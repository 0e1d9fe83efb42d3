"""Gradients of joined images, computed part by part in compiled code.

Each block on the way up a U-Net concatenates an image with a skip. PyTorch's compiler computes the gradient of the
whole as one tensor and hands on windows into it, which every convolution and every other region then copies. With the
two passes below each part is computed for itself, by the same pointwise operations, as one contiguous image.
"""

import inspect
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.reshape.default, _ATEN.view.default, _ATEN.unsqueeze.default)


class Pass(CustomGraphPass):
    """A change of a graph that is compiled."""

    def uuid(self) -> bytes:
        """The key of this pass in the compiler's cache: code is compiled anew when the file of the pass changes."""
        return get_hash_for_files((inspect.getfile(type(self)),))


class PartsAsImages(Pass):
    """Copies each part, channels-last; runs before a graph is divided into its forward and backward pass."""

    def __call__(self, graph: Graph) -> None:
        for part in _parts(graph):
            with graph.inserting_after(part):
                image = graph.call_function(_ATEN.clone.default, (part,), {"memory_format": torch.channels_last})
            image.meta["val"] = part.meta["val"].clone(memory_format=torch.channels_last)
            part.replace_all_uses_with(image)
            image.args = (part,)


class PartsApart(Pass):
    """Repeats for each part the operations that led to the whole; runs on both graphs after the division."""

    def __call__(self, graph: Graph) -> None:
        for part in _parts(graph):
            whole: Any = part.args[0]
            with graph.inserting_before(part):
                part.replace_input_with(whole, _again(graph, whole))
        graph.eliminate_dead_code()


def _parts(graph: Graph) -> list[Node]:
    """The windows into the channels of images, of those images that are read only through several windows."""
    windows = [node for node in graph.nodes if node.target is _ATEN.slice.Tensor and node.args[1] == 1]
    images = [node for node in windows if node.meta["val"].ndim == 4]
    return [node for node in images if len(users := node.all_input_nodes[0].users) > 1 and users.keys() <= {*images}]


def _again(graph: Graph, whole: Node) -> Node:
    """A copy of a node and of the pointwise operations before it that nothing else reads."""
    copies: dict[Node, Node] = {}
    for node in reversed(_own(whole)):
        copies[node] = graph.node_copy(node, lambda before: copies.get(before, before))
    return copies.get(whole, whole)


def _own(whole: Node) -> list[Node]:
    """A node and the pointwise ones before it that only lead to it, readers before what they read."""
    own: dict[Node, None] = {}
    waiting = [whole]
    while waiting:
        node = waiting.pop()
        if _is_pointwise(node) and (node is whole or node.users.keys() <= own.keys()):
            own[node] = None
            waiting += node.all_input_nodes
    return list(own)


def _is_pointwise(node: Node) -> bool:
    return node.target in _VIEWS or torch.Tag.pointwise in getattr(node.target, "tags", ())
