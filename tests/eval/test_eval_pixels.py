import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.stats import wasserstein_distance
from torch import Tensor
from torchmetrics.functional.image import lpips
from torchvision.models import alexnet

from eval.measures.colour import colour_ratios, saturation_and_contrast
from eval.measures.sliced import laplacian_pyramid, patch_distance, patches, sliced_wasserstein
from eval.measures.variety import mean_pairwise_square
from eval.networks.lpips import Lpips
from eval.networks.weights import CONVERT_ALEXNET, alexnet_file
from fastgen.errors import UserError


def normal(count: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_saturation_and_contrast_of_each_pixel_are_those_of_colorsys_and_of_luma() -> None:
    image = torch.randint(0, 256, (1, 3, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = (image[0].permute(1, 2, 0).reshape(-1, 3) / 255).tolist()
    saturation = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels])
    luma = np.std([colorsys.rgb_to_yiq(*pixel)[0] for pixel in pixels])
    found = saturation_and_contrast(image)[0].tolist()
    assert found[0] == pytest.approx(saturation, rel=1e-4)
    assert found[1] == pytest.approx(luma, rel=0.01)  # colorsys rounds its weights to .30 .59 .11


def test_colour_ratios_compare_means() -> None:
    real = torch.tensor([[0.2, 0.1], [0.4, 0.3]])
    ratios = colour_ratios(real * torch.tensor([1.5, 0.5]), real)
    assert ratios["saturation_ratio"].value == pytest.approx(1.5)
    assert ratios["contrast_ratio"].value == pytest.approx(0.5)


def test_sliced_wasserstein_of_a_shift_is_its_projection_and_equals_scipy() -> None:
    points, directions = normal(200, 3, seed=0), torch.eye(3).double()
    shift = torch.tensor([1.0, -2.0, 0.0]).double()
    assert sliced_wasserstein(points + shift, points, directions) == pytest.approx(1)
    other = normal(200, 3, seed=1).exp()
    expected = np.mean([wasserstein_distance(points[:, i], other[:, i]) for i in range(3)])
    assert sliced_wasserstein(points, other, directions) == pytest.approx(expected, rel=1e-9)


def smooth_images(count: int, *, seed: int) -> Tensor:
    noise = torch.randn(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
    return (F.avg_pool2d(noise, 9, 1) * 300 + 128).clamp(0, 255).to(torch.uint8)


def test_the_pyramid_splits_an_image_into_scales_that_add_up() -> None:
    images = smooth_images(2, seed=0).float()
    finest, coarsest = laplacian_pyramid(images)
    assert coarsest.shape[-2:] == (16, 16)
    assert finest.square().mean() < 0.2 * images.var()
    flat = laplacian_pyramid(torch.full((1, 3, 32, 32), 7.0))
    assert flat[1].sub(7).abs().max() < 1e-4
    assert flat[0][..., 4:-4, 4:-4].abs().max() < 1e-4


def test_patch_distance_sees_a_grid_at_the_finest_level_only() -> None:
    def drawn(images: Tensor) -> list[Tensor]:
        return patches(images, range(len(images)), seed=0)

    real, fake = smooth_images(60, seed=0), smooth_images(60, seed=1)
    stripes = torch.tensor([12, -12]).repeat(16)
    grid = (fake.int() + stripes).clamp(0, 255).to(torch.uint8)
    clean, spoilt = patch_distance(drawn(fake), drawn(real), seed=0), patch_distance(drawn(grid), drawn(real), seed=0)
    assert spoilt.details["level_0"] > 3 * clean.details["level_0"]
    assert spoilt.details["level_1"] < 1.5 * clean.details["level_1"]
    assert patch_distance(drawn(real), drawn(real), seed=0).value == 0


def test_patches_depend_on_the_image_and_not_on_its_batch() -> None:
    images = smooth_images(5, seed=0)
    whole = patches(images, range(10, 10 + len(images)), seed=3)
    parts = [patches(images[:2], [10, 11], seed=3), patches(images[2:], range(12, 10 + len(images)), seed=3)]
    for depth, level in enumerate(whole):
        assert level.shape == (5, 64, 3, 7, 7)
        assert torch.equal(torch.cat([part[depth] for part in parts]), level)
    assert not torch.equal(patches(images[:1], [0], seed=3)[0], patches(images[:1], [1], seed=3)[0])


def test_lpips_vectors_have_the_distances_of_torchmetrics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = alexnet(weights=None)
    save_file(network.state_dict(), tmp_path / "alexnet.safetensors")
    theirs = lpips._LPIPS(net="alex", pnet_rand=True, resize=64)
    layers = dict(theirs.net.named_parameters())
    for name, weights in network.features.named_parameters():
        layers[next(own for own in layers if own.partition(".")[2] == name)].data = weights.data
    images = torch.randint(0, 256, (4, 3, 96, 80), dtype=torch.uint8)
    vectors = Lpips(tmp_path / "alexnet.safetensors", device=torch.device("cpu"))(images)
    one, two = torch.tensor([[a, b] for a in range(4) for b in range(a)]).T
    with torch.no_grad():
        expected = theirs(images[one] / 127.5 - 1, images[two] / 127.5 - 1).flatten()
    assert torch.allclose((vectors[one] - vectors[two]).square().sum(1), expected, rtol=1e-4)
    of_pairs = mean_pairwise_square(vectors, torch.zeros(4, dtype=torch.int64))
    assert of_pairs.value == pytest.approx(float(expected.mean()), rel=1e-4)


def test_pickled_weights_are_not_read_but_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = alexnet(weights=None)
    published = tmp_path / "alexnet-owt-7be5be79.pth"
    torch.save(network.state_dict(), published)
    with pytest.raises(UserError, match=r"Pickled files are not read; convert the published one") as caught:
        Lpips(published, device=torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    exec(CONVERT_ALEXNET)
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    assert CONVERT_ALEXNET in str(caught.value)
    Lpips(alexnet_file(None), device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"does not hold the weights of torchvision's AlexNet as safetensors"):
        Lpips(Path(__file__), device=torch.device("cpu"))
