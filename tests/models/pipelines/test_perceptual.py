"""LPIPS as the regression of DMD: torchmetrics' own value of the decoded images, with the graph to the samples."""

import pytest
import small_run
import tiny
import torch
from closed_forms import REAL, gaussian_roles, quasi_random, scripted
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips, learned_perceptual_image_patch_similarity

from fastgen.engine.checkpoint import load, save
from fastgen.errors import UserError
from fastgen.models.pipelines import perceptual
from fastgen.models.pipelines.perceptual import Perceptual, lpips_network
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import Pair
from fastgen.objectives.distribution.dmd import DMD
from fastgen.process import Flow


@pytest.fixture
def random_weights(monkeypatch) -> nn.Module:
    """The network with a backbone of random weights, since the published ones are a download."""
    torch.manual_seed(0)
    network = _NoTrainLpips(net="alex", pnet_rand=True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._NoTrainLpips", lambda net: network)
    return network


@pytest.mark.parametrize("make", [tiny.class_conditional, tiny.stable_diffusion])
def test_it_is_the_librarys_value_of_the_decoded_images(make, random_weights):
    codec = Pipeline(make(), size={"height": 64, "width": 64} if make is tiny.stable_diffusion else None).codec
    x, y = torch.randn(2, 2, *codec.encode(torch.zeros(1, 3, 64, 64)).shape[1:])
    judge = Perceptual(codec, random_weights)
    found = judge(x.requires_grad_(), y)
    images = [codec.decode(z.detach()) for z in (x, y)]
    wanted = [learned_perceptual_image_patch_similarity(*(im[i : i + 1] for im in images), "alex") for i in range(2)]
    torch.testing.assert_close(found.detach(), torch.stack(wanted))
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.abs().sum() > 0
    assert not any(p.requires_grad for p in random_weights.parameters())


def test_a_stage_with_lpips_goes_on_from_its_checkpoint(random_weights, tmp_path):
    """Which holds nothing of the network of LPIPS: that is a published file."""
    stage = small_run.stage(Pipeline(tiny.class_conditional()), DMD(distance="lpips"))
    save(tmp_path, 1, stage.snapshot(), keep=1)
    saved = load(tmp_path / "00000001")
    assert saved.tensors["lpips"] == {}
    stage.roles.generator.net.conv_in.bias.data += 1
    stage.restore(saved)
    torch.testing.assert_close(stage.roles.generator.net.conv_in.bias, stage.ema.averages["net.conv_in.bias"])


class Squared(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(dim=1)


def test_dmd_regresses_by_it():
    z, eps = quasi_random(2, 64)
    batch = scripted(z, eps)
    batch.pairs = Pair(z, 0 * z)
    roles = gaussian_roles(Flow(), lpips=Squared())
    term = DMD(distance="lpips", regression=0.5).generator(roles, batch)["regression"]
    x0 = roles.generator(z, batch.full(1.0), REAL.uncond(64)).x0
    torch.testing.assert_close(term, 0.5 * x0.square().sum(dim=1).mean())
    assert DMD(distance="lpips").needs.lpips
    assert not DMD().needs.lpips


def test_weights_that_cannot_be_had_are_told_with_their_place(monkeypatch):
    def unreachable(net: str) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr("torchmetrics.functional.image.lpips._NoTrainLpips", unreachable)
    with pytest.raises(UserError, match=r"no network.*checkpoints, or set distance=pseudo_huber"):
        lpips_network()
    assert perceptual.torch.hub.get_dir()
