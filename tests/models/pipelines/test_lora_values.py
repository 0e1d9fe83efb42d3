"""A user's LoRA is worth what its file says, layer by layer: W + alpha / rank * B A, by value, or it is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import save_file
from teachers import lora_of, refusal, taught
from torch import Tensor, nn

from fastgen.models.pipelines.source import LoRAFile

RANKS, ALPHAS = (8, 2, 5, 3), (4.0, 1.0, 2.5, 6.0)  # as rank-resized files have them; the last is stronger
Told = dict[str, Tensor]


@pytest.fixture(scope="module", params=["stable_diffusion", "sdxl", "flux", "sd3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, str, Path]:
    """The denoiser, its name among the pipeline's parts, and the pipeline's folder."""
    pipe, folder = FAMILIES[request.param].build(), tmp_path_factory.mktemp(request.param)
    pipe.save_pretrained(folder)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    return getattr(pipe, part), part, folder


def layers_of(net: nn.Module) -> list[str]:
    """Four attention layers; Flux's single blocks and SD3's text projections among them."""
    found = [name for name, _ in net.named_modules() if name.endswith(("to_q", "to_k", "to_v", "add_v_proj"))]
    return [found[i * (len(found) - 1) // 3] for i in range(4)]


def factors(net: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """B, A and alpha of four layers, no two alike."""
    rng, drawn = torch.Generator().manual_seed(0), {}
    for layer, rank, alpha in zip(layers_of(net), RANKS, ALPHAS, strict=True):
        out, wide = net.get_submodule(layer).weight.shape
        drawn[layer] = torch.randn(out, rank, generator=rng), torch.randn(rank, wide, generator=rng), alpha
    return drawn


def in_kohyas_keys(part: str, layer: str, up: Tensor, down: Tensor, alpha: float | None) -> Told:
    key = f"lora_{'unet' if part == 'unet' else 'transformer'}_{layer.replace('.', '_')}"
    told = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    return told | ({} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)})


def in_pefts_keys(part: str, layer: str, up: Tensor, down: Tensor, alpha: float | None) -> Told:
    told = {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
    return told | ({} if alpha is None else {f"{part}.{layer}.alpha": torch.tensor(alpha)})


def check(base: tuple[nn.Module, str, Path], file: Path, wanted: dict[str, Tensor], weight: float = 1.0) -> None:
    """Every layer of the fused network is the base's, and those of `wanted` with that beside it."""
    net, part, folder = base
    fused = getattr(taught(folder, LoRAFile(path=str(file), weight=weight)), part).state_dict()
    for name, value in net.state_dict().items():
        update = wanted.get(name.removesuffix(".weight"))
        expected = value if update is None else value + weight * update
        torch.testing.assert_close(
            fused[name], expected, rtol=1e-5, atol=1e-5, msg=lambda told, name=name: f"{name} {told}"
        )


@pytest.mark.parametrize("write", [in_kohyas_keys, in_pefts_keys])
@pytest.mark.parametrize("with_alphas", [True, False])
def test_layers_of_different_rank_and_alpha_get_their_own_strength(
    base: tuple[nn.Module, str, Path], write: Callable[..., Told], with_alphas: bool, tmp_path: Path
) -> None:
    net, part, _ = base
    if part == "transformer" and write is in_kohyas_keys:
        pytest.skip("Kohya's keys of transformers are the original code's, see below")
    tensors: Told = {}
    wanted = {}
    for layer, (up, down, alpha) in factors(net).items():
        tensors |= write(part, layer, up, down, alpha if with_alphas else None)
        wanted[layer] = (alpha / len(down) if with_alphas else 1.0) * up @ down
    save_file(tensors, tmp_path / "a.safetensors")
    check(base, tmp_path / "a.safetensors", wanted, weight=0.7)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_alphas_of_pefts_metadata_are_each_layers_own(base: Any, rslora: bool, tmp_path: Path) -> None:
    net, part, _ = base
    drawn = factors(net)
    tensors = {
        k: v for layer, (up, down, _) in drawn.items() for k, v in in_pefts_keys(part, layer, up, down, None).items()
    }
    first, *rest = drawn
    told = {"r": 8, "lora_alpha": 3.0, "alpha_pattern": {first: 7.0}, "use_rslora": rslora}
    metadata = json.dumps({f"{part}.{name}": value for name, value in told.items()})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": metadata})
    rank = {layer: len(down) for layer, (_, down, _) in drawn.items()}
    alpha = {first: 7.0, **dict.fromkeys(rest, 3.0)}
    scale = {layer: alpha[layer] / (math.sqrt(rank[layer]) if rslora else rank[layer]) for layer in drawn}
    check(base, tmp_path / "a.safetensors", {layer: scale[layer] * up @ down for layer, (up, down, _) in drawn.items()})


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_a_dora_gives_rows_their_norms(base: Any, weight: float, tmp_path: Path) -> None:
    net, part, _ = base
    write, norms = (in_kohyas_keys, "dora_scale") if part == "unet" else (in_pefts_keys, "lora_magnitude_vector")
    tensors: Told = {}
    wanted = {}
    for index, (layer, (up, down, alpha)) in enumerate(factors(net).items()):
        told = write(part, layer, up, down, alpha if write is in_kohyas_keys else len(down))
        before = net.get_submodule(layer).weight.detach()
        after = before + (alpha if write is in_kohyas_keys else len(down)) / len(down) * up @ down
        if index:  # the first is no DoRA
            magnitude = torch.rand(len(up), 1) + 1
            stem = next(iter(told)).rsplit(".lora_", 1)[0]
            told[f"{stem}.{norms}"] = magnitude if norms == "dora_scale" else magnitude.flatten()
            after = magnitude * after / after.norm(dim=1, keepdim=True)
        tensors |= told
        wanted[layer] = after - before
    save_file(tensors, tmp_path / "a.safetensors")
    check(base, tmp_path / "a.safetensors", wanted, weight)


def test_fluxs_fused_layers_in_kohyas_keys_reach_every_part_of_theirs(tmp_path: Path) -> None:
    """One update of queries, keys and values, and one that is sparse, as files with three updates are merged."""
    pipe, rng = FAMILIES["flux"].build(), torch.Generator().manual_seed(0)
    pipe.save_pretrained(tmp_path / "base")
    wide = pipe.transformer.inner_dim

    def drawn(out: int, rank: int) -> tuple[Tensor, Tensor]:
        return torch.randn(out, rank, generator=rng), torch.randn(rank, wide, generator=rng)

    whole, feed = drawn(3 * wide, 6), drawn(4 * wide, 3)
    up, down = drawn(3 * wide, 6)
    sparse = up * torch.block_diag(*[torch.ones(wide, 2)] * 3), down
    keys = ("double_blocks_0_img_attn_qkv", "double_blocks_1_img_attn_qkv", "double_blocks_1_img_mlp_0")
    tensors: Told = {}
    for key, pair, alpha in zip(keys, (whole, sparse, feed), ALPHAS[:3], strict=True):
        tensors |= in_kohyas_keys("unet", key, *pair, alpha)
    save_file(tensors, tmp_path / "a.safetensors")
    wanted = {"transformer_blocks.1.ff.net.0.proj": ALPHAS[2] / 3 * feed[0] @ feed[1]}
    for block, (b, a) in enumerate((whole, sparse)):
        for name, rows in zip("qkv", (ALPHAS[block] / 6 * b @ a).chunk(3), strict=True):
            wanted[f"transformer_blocks.{block}.attn.to_{name}"] = rows
    check((pipe.transformer, "transformer", tmp_path / "base"), tmp_path / "a.safetensors", wanted)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("lora_unet_mid_block_resnets_0_conv1.hada_w1_a", (2, 2)),
        ("lora_unet_mid_block_resnets_0_conv1.diff", (2, 2)),
        ("unet.conv_in.lora_B.bias", (8,)),
        ("lora_unet_conv_in.lora_down.weight", (1, 4, 3, 3)),
    ],
)
def test_keys_that_would_not_be_used_are_named(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    pipe = FAMILIES["stable_diffusion"].build()
    pipe.save_pretrained(tmp_path / "base")
    save_file(lora_of(pipe.unet, "unet.") | {key: torch.ones(shape)}, tmp_path / "a.safetensors")
    words = refusal(tmp_path / "base", LoRAFile(path=str(tmp_path / "a.safetensors")))
    assert f"keys that are no part of a low-rank update, {key}" in words


def test_what_diffusers_gives_a_layer_otherwise_than_the_file_has_it_is_refused_by_name(tmp_path: Path) -> None:
    """It leaves this one of Flux out, without a word."""
    pipe = FAMILIES["flux"].build()
    pipe.save_pretrained(tmp_path / "base")
    wide = pipe.transformer.inner_dim
    layer = "final_layer_adaLN_modulation_1"
    tensors = in_kohyas_keys("unet", layer, torch.randn(2 * wide, 2), torch.randn(2, wide), 1.0)
    tensors |= in_kohyas_keys("unet", "double_blocks_0_img_mlp_0", torch.randn(4 * wide, 2), torch.randn(2, wide), 1.0)
    save_file(tensors, tmp_path / "a.safetensors")
    words = refusal(tmp_path / "base", LoRAFile(path=str(tmp_path / "a.safetensors")))
    assert f"1 of its 2 updates fit none of the layers (lora_unet_{layer}.lora_down.weight" in words
