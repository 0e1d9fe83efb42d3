"""Teachers as people have them: folders with variants, a base with LoRAs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from teachers import lora_of, picture, refusal, same, taught
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.source import LoRAFile, TeacherSource
from fastgen.models.pipelines.teacher import load_teacher


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer = tiny.clip_tokenizer()
    first = tiny.clip_text_model(tokenizer)
    second = CLIPTextModelWithProjection(CLIPTextConfig(**{**first.config.to_dict(), "projection_dim": 16})).eval()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * tiny.TEXT_WIDTH,
        attention_head_dim=2,
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=tiny.autoencoder(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(),
    )


@dataclass(frozen=True)
class Family:
    build: Callable[[], DiffusionPipeline]
    denoiser: str
    texts: tuple[str, ...]


FAMILIES = {
    "sd": Family(tiny.stable_diffusion, "unet", ("text_encoder",)),
    "sdxl": Family(sdxl, "unet", ("text_encoder", "text_encoder_2")),
    "flux": Family(tiny.flux, "transformer", ("text_encoder",)),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def whole_lora(pipe: DiffusionPipeline, family: Family, *, seed: int) -> dict[str, Tensor]:
    parts = (family.denoiser, *family.texts)
    return {k: v for part in parts for k, v in lora_of(getattr(pipe, part), f"{part}.", seed=seed).items()}


def kohya(tensors: dict[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """The same LoRA in the keys of Kohya's scripts, with an alpha for each layer."""
    ends = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    told = {}
    for key, value in tensors.items():
        end = next(end for end in ends if key.endswith(end))
        layer = "lora_" + key.removesuffix(end).replace(".", "_")
        told |= {layer + ends[end]: value, f"{layer}.alpha": torch.tensor(alpha)}
    return told


@pytest.mark.parametrize("weights", [(0.8,), (0.8, -0.5)])
def test_a_teacher_with_loras_is_what_stock_diffusers_makes_of_them(
    family: Family, weights: tuple[float, ...], tmp_path: Path
) -> None:
    stock = family.build()
    stock.save_pretrained(tmp_path / "base")
    plain = picture(stock)
    names = [f"lora{seed}.safetensors" for seed in range(len(weights))]
    for seed, name in enumerate(names):
        save_file(whole_lora(family.build(), family, seed=seed), tmp_path / name)
        stock.load_lora_weights(tmp_path, weight_name=name, adapter_name=str(seed))
    stock.set_adapters([str(seed) for seed in range(len(names))], list(weights))

    loras = [LoRAFile(path=str(tmp_path), file=name, weight=w) for name, w in zip(names, weights, strict=True)]
    teacher = taught(tmp_path / "base", *loras)

    assert same(picture(teacher), picture(stock))
    assert not same(picture(teacher), plain)
    networks = [part for part in teacher.components.values() if isinstance(part, nn.Module)]
    assert not any(isinstance(module, BaseTunerLayer) for net in networks for module in net.modules())
    teacher.save_pretrained(tmp_path / "fused")
    assert same(picture(load(tmp_path / "fused", device="cpu")), picture(stock))


def test_kohyas_alpha_is_respected(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "base")
    tensors = lora_of(pipe.unet, "unet.", rank=2)
    save_file(kohya(tensors, alpha=1.0), tmp_path / "kohya.safetensors")
    save_file(tensors, tmp_path / "peft.safetensors")
    by_kohya = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "kohya.safetensors")))
    by_peft = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "peft.safetensors"), weight=1.0 / 2))
    assert same(picture(by_kohya), picture(by_peft))


def test_a_lora_of_the_text_encoder_alone_is_enough(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "base")
    save_file(lora_of(pipe.text_encoder, "text_encoder."), tmp_path / "text.safetensors")
    teacher = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "text.safetensors")))
    before = pipe.text_encoder.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in teacher.text_encoder.state_dict().items())
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in teacher.unet.state_dict().items())


def test_weight_zero_leaves_the_base_as_it_is(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "base")
    save_file(whole_lora(pipe, FAMILIES["sd"], seed=0), tmp_path / "a.safetensors")
    teacher = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "a.safetensors"), weight=0))
    assert same(picture(teacher), picture(pipe))


@pytest.mark.parametrize(("place", "alpha"), [("layer", 6.0), ("file", 6.0), (None, 2.0)])
def test_a_pipeline_without_a_lora_loader_gets_its_lora_too(place: str | None, alpha: float, tmp_path: Path) -> None:
    pipe = tiny.dit()
    pipe.save_pretrained(tmp_path / "base")
    tensors = lora_of(pipe.transformer, "transformer.", rank=2)
    layer = next(iter(tensors)).removeprefix("transformer.").removesuffix(".lora_A.weight")
    if place == "layer":
        tensors |= {key.replace("lora_A.weight", "alpha"): torch.tensor(6.0) for key in tensors if "lora_A" in key}
    told = json.dumps({"transformer.lora_alpha": 6.0} if place == "file" else {})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": told})
    teacher = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "a.safetensors"), weight=-0.5))
    up, down = (tensors[f"transformer.{layer}.lora_{end}.weight"] for end in "BA")
    expected = pipe.transformer.get_submodule(layer).weight - 0.5 * alpha / 2 * up @ down
    torch.testing.assert_close(teacher.transformer.get_submodule(layer).weight, expected)
    other = "transformer_blocks.0.attn1.to_k.weight"
    assert torch.equal(teacher.transformer.state_dict()[other], pipe.transformer.state_dict()[other])


def test_a_lora_of_convolutions_equals_two_convolutions(tmp_path: Path) -> None:
    pipe = tiny.ddpm()
    pipe.save_pretrained(tmp_path / "base")
    down, up = torch.randn(2, 3, 3, 3), torch.randn(8, 2, 1, 1)
    save_file({"conv_in.lora_A.weight": down, "conv_in.lora_B.weight": up}, tmp_path / "a.safetensors")
    teacher = taught(tmp_path / "base", LoRAFile(path=str(tmp_path / "a.safetensors")))
    x = torch.randn(1, 3, 8, 8)
    added = nn.functional.conv2d(nn.functional.conv2d(x, down, padding=1), up)
    torch.testing.assert_close(teacher.unet.conv_in(x), pipe.unet.conv_in(x) + added)


# What a user can get wrong


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "tensors",
    [
        lora_of(tiny.flux().transformer, "transformer."),
        {"unet.elsewhere.to_q.lora_A.weight": torch.ones(1, 8), "unet.elsewhere.to_q.lora_B.weight": torch.ones(8, 1)},
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(1, 999),
         "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.ones(999, 1)},
        {"nonsense": torch.ones(2)},
    ],
    ids=["another family", "no such layer", "another width", "no lora"],
)  # fmt: skip
def test_a_lora_of_another_base_is_refused(base: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    words = refusal(base, LoRAFile(path=str(tmp_path / "a.safetensors")))
    assert "a.safetensors cannot be added to this StableDiffusionPipeline" in words


def test_a_lora_that_fits_in_part_is_refused_with_what_fits_nowhere(base: Path, tmp_path: Path) -> None:
    tensors = lora_of(tiny.stable_diffusion().unet, "unet.")
    elsewhere = {k.replace("mid_block", "elsewhere"): v + 1 for k, v in tensors.items() if "mid_block" in k}
    save_file(tensors | elsewhere, tmp_path / "a.safetensors")
    words = refusal(base, LoRAFile(path=str(tmp_path / "a.safetensors")))
    assert "4 of its 20 updates fit none of the layers (unet.elsewhere.attentions.0" in words


def test_without_a_loader_a_foreign_lora_is_refused(tmp_path: Path) -> None:
    tiny.ddpm().save_pretrained(tmp_path / "base")
    file = tmp_path / "a.safetensors"
    down, up = torch.ones(1, 3), torch.ones(8, 1)
    save_file({"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}, file)
    assert "DDPMPipeline has no LoRA loader" in refusal(tmp_path / "base", LoRAFile(path=str(file)))
    save_file({"conv_out.no.lora_A.weight": torch.ones(1, 3), "conv_out.no.lora_B.weight": torch.ones(3, 1)}, file)
    assert "cannot be added" in refusal(tmp_path / "base", LoRAFile(path=str(file)))


def test_a_lora_file_must_be_one_whole_safetensors_file(base: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "pytorch_lora_weights.bin"
    pickle.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "is a pickle" in refusal(base, LoRAFile(path=str(tmp_path)))
    assert "is a pickle" in refusal(base, LoRAFile(path=str(pickle)))
    assert "there is no LoRA" in refusal(base, LoRAFile(path=str(tmp_path / "absent.safetensors")))
    assert "has no file 'b.safetensors'" in refusal(base, LoRAFile(path=str(tmp_path), file="b.safetensors"))
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"version https://git-lfs")
    assert "a.safetensors, b.safetensors: say which one" in refusal(base, LoRAFile(path=str(tmp_path)))
    assert "b.safetensors is damaged" in refusal(base, LoRAFile(path=str(tmp_path), file="b.safetensors"))


def test_a_lora_on_the_hub_needs_the_hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = refusal(base, LoRAFile(path="somebody/lora", file="x.safetensors"))
    assert "'somebody/lora' is neither here nor would the hub give it" in words


# Variants and dtypes

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167536\n"


def test_a_folder_of_half_precision_weights_loads_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.stable_diffusion().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    pipe = load_teacher(TeacherSource(path=str(tmp_path)), device="cpu")
    assert "only fp16 weights" in caplog.text
    assert pipe.unet.dtype == torch.float32
    assert taught(tmp_path, variant="fp16", dtype="fp16").unet.dtype == torch.float16
    assert "variant=ema" in refusal(tmp_path, variant="ema")


def test_plain_weights_come_before_a_variant(tmp_path: Path) -> None:
    pipe = tiny.ddpm()
    pipe.save_pretrained(tmp_path)
    nn.init.zeros_(pipe.unet.conv_out.bias)
    nn.init.ones_(pipe.unet.conv_in.bias)
    pipe.save_pretrained(tmp_path, variant="ema")
    assert not torch.equal(taught(tmp_path).unet.conv_in.bias, torch.ones(8))
    assert torch.equal(taught(tmp_path, variant="ema").unet.conv_in.bias, torch.ones(8))


def test_only_weights_that_would_be_loaded_are_judged(tmp_path: Path) -> None:
    """A clone of which the fp16 files alone were pulled, with files beside them that are no part of the pipeline."""
    pipe = tiny.stable_diffusion().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    for part in ("unet", "vae", "text_encoder"):
        for file in (tmp_path / part).glob("*.fp16.safetensors"):
            file.with_name(file.name.replace(".fp16", "")).write_text(POINTER)
    for other in ("v1-5-pruned.safetensors", "unet/old.safetensors", "unet_ema/diffusion_pytorch_model.safetensors"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text(POINTER)
    assert torch.equal(taught(tmp_path, variant="fp16").unet.conv_in.bias.half(), pipe.unet.conv_in.bias)
    assert "text_encoder/model.safetensors is damaged" in refusal(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_text(POINTER)
    assert "vae/diffusion_pytorch_model.fp16.safetensors is damaged" in refusal(tmp_path, variant="fp16")


def test_variants_that_do_not_agree_are_named(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "mixed")
    for part, variant in (("unet", "ema"), ("vae", "fp16")):
        file = tmp_path / "mixed" / part / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    assert "its variants are ema, fp16" in refusal(tmp_path / "mixed")


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("auto", torch.float64)])
def test_weights_have_the_dtype_that_is_asked_for(base: Path, dtype: str, expected: torch.dtype) -> None:
    pipe = load_teacher(TeacherSource(path=str(base), dtype=dtype), device="cpu", auto=torch.float64)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == expected


# Single files
