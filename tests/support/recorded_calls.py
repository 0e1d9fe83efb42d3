"""Small networks whose calls graphs record."""

import torch
from torch import nn

from fastgen.models.graphs import Graphs
from fastgen.models.recordable import Actor

CUDA = "cuda"


class Net(nn.Module):
    """Two layers, the second of which has a twin that no call reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, t):
        return self.b(torch.tanh(self.a(x)) * t[:, None])


class Waiter(Net):
    def forward(self, x, t):
        return super().forward(x, t) * t.max().item()


def caller(net, name="net"):
    graphs = Graphs()
    actor = Actor(name, net, tuple(net.parameters()), (), lambda told: net(**told))
    return graphs, lambda x, t: graphs.call(actor, {"x": x, "t": t})


def drawn(seed, grad=False, rows=3):
    stream = torch.Generator(CUDA).manual_seed(seed)
    x, t = torch.randn(rows, 8, generator=stream, device=CUDA), torch.rand(rows, generator=stream, device=CUDA)
    return x.requires_grad_(grad), t


def recorded(graphs):
    return [one for one in graphs._recorded.values() if one is not None]
