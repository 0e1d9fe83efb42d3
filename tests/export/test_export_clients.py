"""LoRA files in the programs that people use: no trained layer is left out, and what is added is what was trained."""

import json
from collections.abc import Mapping

import clients
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from exporting import student_of
from families import FAMILIES
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen.config.lora import LoRAConfig
from fastgen.export.adapter import Adapter
from fastgen.export.kohya import kohya_state
from fastgen.export.lora import FILES, export_lora, known_keys
from fastgen.models.low_rank import DOWN_KEY, UP_KEY
from fastgen.models.pipelines.components import network_of
from fastgen.models.pipelines.published import PUBLISHED
from fastgen.models.targets import find_targets

WIDTH = 3072  # of Flux


def trained(net: nn.Module, *, rank: int = 1, alpha: float = 3.0, wanted: list[str] | None = None) -> Adapter:
    """A random adapter on the layers that a run trains by default."""
    weights: dict[str, Tensor] = {}
    layers = find_targets(net, wanted)
    for layer in layers:
        shape = net.get_submodule(layer).weight.shape
        weights[layer + DOWN_KEY] = torch.randn(rank, *shape[1:])
        weights[layer + UP_KEY] = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2))
    return Adapter(weights, LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers))


def right(adapter: Adapter) -> dict[str, Tensor]:
    """layer -> alpha / rank B A, as it was trained, `acting`."""
    pairs = {layer: (adapter.weights[layer + UP_KEY], adapter.weights[layer + DOWN_KEY]) for layer in adapter.layers}
    return {n: clients.acting(up, down, adapter.alpha(n) / len(down)) for n, (up, down) in pairs.items()}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update, rtol=1e-5, atol=1e-5 * float(update.abs().max()))


@pytest.mark.parametrize(("name", "layers"), [("sd15", 160), ("sdxl", 700)])
@pytest.mark.parametrize("client", clients.UNET)
def test_the_unets_of_stable_diffusion_are_read_whole(name, layers, client):
    with torch.device("meta"):
        net = UNet2DConditionModel(**PUBLISHED[name].settings)
    adapter = trained(net)
    assert len(adapter.layers) == layers
    known = {clients.flat(name): name for name, _ in net.named_modules() if clients.UNET[client].fullmatch(name)}
    read = {known[name]: update for name, update in clients.updates(kohya_state(net, adapter))}
    same(read, right(adapter))


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    """One block of each kind in the real width, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1)


def in_rows(adapter: Adapter, net: nn.Module) -> dict[str, Tensor]:
    """The trained updates in the rows of the model as it was first published."""
    whole: dict[str, Tensor] = {}
    for layer, update in right(adapter).items():
        rows = clients.flux_rows(layer)
        together = [n for n, m in net.named_modules() if "blocks" in n and isinstance(m, nn.Linear)]
        size = sum(len(net.get_submodule(n).weight) for n in together if clients.flux_rows(n).weight == rows.weight)
        weight = whole.setdefault(clients.flat(rows.weight), torch.zeros(size, 2))
        assert rows.size in (None, len(update) / WIDTH)
        weight[rows.start * WIDTH : rows.start * WIDTH + len(update)] = update
    return whole


@pytest.mark.parametrize("wanted", [None, [r".*attn\.to_[kv]", "norm1.linear", "norm.linear"]])
def test_flux_is_read_under_its_first_names_by_all(flux, wanted):
    adapter = trained(flux, rank=2, wanted=wanted)
    state = kohya_state(flux, adapter)
    same(dict(clients.updates(state)), in_rows(adapter, flux))
    theirs = dict(clients.updates(_convert_kohya_flux_lora_to_diffusers(dict(state))))
    read = {name.removeprefix("transformer."): update for name, update in theirs.items() if update.any()}
    same(read, right(adapter))


SETTINGS = {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}  # Diffusers 0.35 looks up them all


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "flux", "sd3"])
def test_a_reader_without_metadata_adds_the_right_update(tmp_path, name):
    pipe = FAMILIES[name].build()
    net = network_of(pipe)
    layers = find_targets(net)
    keys = known_keys(pipe, layers)
    assert keys == (("diffusers",) if name == "sd3" else ("diffusers", "kohya"))
    assert LoRAConfig().keys is None
    adapter = trained(net, rank=2, alpha=5.0)
    config = LoraConfig(r=2, lora_alpha=5.0, target_modules=layers, alpha_pattern={layers[0]: 7.0})
    student = student_of(pipe, (2,), "ode", FAMILIES[name].size)
    given = Adapter(adapter.weights, config)
    folder = export_lora(pipe, given, student.notes, tmp_path / "lora", student.schedules, keys=keys)
    file = folder / FILES["diffusers"]
    state = {
        k.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): v for k, v in load_file(file).items()
    }
    prefix = "unet." if name in ("stable_diffusion", "sdxl") else "transformer."
    same({key.removeprefix(prefix): update for key, update in clients.updates(state)}, right(given))
    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    told = {key.removeprefix(prefix): value for key, value in metadata.items()}
    assert told.keys() == SETTINGS
    assert told["lora_alpha"] == told["r"] == 2
    assert (FILES["kohya"] in (folder / "README.md").read_text()) == ("kohya" in keys)
