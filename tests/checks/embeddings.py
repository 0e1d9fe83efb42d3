"""A small network with embeddings of further scalars, and what has to hold of them."""

import torch
from torch import Tensor, nn

from fastgen.models.denoiser import NetworkDenoiser
from fastgen.process import Flow
from fastgen.proofs.analytic import Mixture
from fastgen.proofs.toy import toy_denoiser

T = torch.tensor([0.3, 0.8], dtype=torch.float64)
VALUES = {"called": torch.tensor([1.0, 0.5]).double(), "landed": torch.tensor([0.0, 0.25]).double()}
PLANE = Mixture(torch.zeros(1, 2), torch.eye(2)[None])


def small_net(*scalars: str) -> NetworkDenoiser:
    learned = toy_denoiser(Flow(), PLANE)
    return NetworkDenoiser(learned.net, learned.reading, learned.form, scalars=scalars)


def awake(denoiser: nn.Module) -> nn.Module:
    """Its embeddings as they could be after some training."""
    for embedding in denoiser.embeddings.embed.values():
        nn.init.normal_(embedding[-1].weight)
    return denoiser


def heard(denoiser: NetworkDenoiser, *names: str) -> Tensor:
    """The time embedding of a network that is told T under these names."""
    with denoiser.embeddings.told(denoiser.net, denoiser.embeddings.words(dict.fromkeys(names, T))):
        return denoiser.net.time_embedding(torch.zeros(2, 8))


def check_embeddings() -> None:
    """Nothing is added at first, then the sum of what each scalar of each row says."""
    denoiser = small_net("called", "landed")
    nothing = heard(denoiser)
    assert torch.equal(heard(denoiser, "called", "landed"), nothing)
    awake(denoiser)
    called, landed, both = (heard(denoiser, *names) for names in (["called"], ["landed"], ["called", "landed"]))
    torch.testing.assert_close(both - nothing, (called - nothing) + (landed - nothing))
    assert not torch.allclose(called, landed)
    assert not torch.allclose(called[0] - nothing[0], called[1] - nothing[1])
