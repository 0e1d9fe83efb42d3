import shutil
from pathlib import Path

import cleanfid.fid
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from encoded import encoded, noise_image, save
from torch import Tensor, nn
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model

from eval.evaluate import evaluate
from eval.networks.clip import Clip
from eval.networks.inception import InceptionExtractor, clean_resize
from eval.networks.protocols import IMAGENET, build_extractor
from eval.networks.weights import INCEPTION, model_folder
from eval.options import Options
from fastgen.errors import UserError
from fastgen.files import sha256_file

CPU = torch.device("cpu")
PROMPTS = ("a cab", "a bed")


class Layers(nn.Module):
    """Pooled colours and edges as `width` features; clean-fid's own shape check wants 2048."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 7, stride=9), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).mean((2, 3)))


class StandIn(nn.Module):
    """The call conventions of the published file: resize inside, features or class shares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = Layers(width)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        sized = F.interpolate(img.float(), size=[299, 299], mode="bilinear", align_corners=False)
        features = self.layers((sized - 128.0) / 128.0)
        if return_features:
            return features
        return features[:, :10].softmax(1) if no_output_bias else features[:, 10:20].softmax(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in network under the published name, real/ and fake/ of ten images, and clip/."""
    folder = tmp_path_factory.mktemp("protocols")
    torch.jit.script(StandIn(2048).eval()).save(folder / INCEPTION)
    torch.jit.script(StandIn(24).eval()).save(folder / "narrow.pt")
    for kind, first in (("real", 0), ("fake", 100)):
        for number in range(10):
            save(folder / kind / f"{number}.png", encoded(noise_image(first + number, 20 + number, 24)))
    tokenizer = tiny.clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 12, **small, **ends},
        vision_config={"image_size": 32, "patch_size": 8, **small},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder / "clip")
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder / "clip")
    return folder


def options(place: Path, **settings: object) -> Options:
    paths = {"reference": place / "real", "student": str(place / "fake"), "num": 10, "allow_small": True, "gallery": 0}
    return Options(**paths | {"metrics": ("fid",), "device": "cpu"} | settings)


def figure(place: Path, out: Path, name: str, **settings: object) -> float:
    report = evaluate(options(place, out=out, **settings))
    return report.rows[-1].metrics[name].value


@pytest.mark.parametrize("size", [(32, 32), (60, 45), (299, 299), (330, 310)])
def test_the_clean_resize_is_clean_fids_own(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = build_resizer("clean")(image).transpose(2, 0, 1)
    found = clean_resize(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_clean_is_clean_fid_end_to_end(place: Path, tmp_path: Path) -> None:
    network = InceptionV3W(str(place), download=False)

    def features(kind: str) -> np.ndarray:
        files = sorted(map(str, (place / kind).iterdir()))
        return cleanfid.fid.get_files_features(
            files, model=network, num_workers=0, device=CPU, mode="clean", batch_size=4, verbose=False
        )

    fake, real = (features(kind).astype(np.float64) for kind in ("fake", "real"))
    roots = [(rows - rows.mean(0)) / 3 for rows in (fake, real)]  # ten images: cov = root^T root
    spread = sum((root**2).sum() for root in roots)
    shift = ((fake.mean(0) - real.mean(0)) ** 2).sum()
    expected = shift + spread - 2 * np.linalg.svd(roots[0] @ roots[1].T)[1].sum()
    ours = figure(place, tmp_path, "fid", protocol="clean", extractor=str(place / INCEPTION))
    assert ours == pytest.approx(expected, rel=1e-3)


def test_edm_and_adm_hand_uint8_images_to_the_network(place: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = torch.jit.load(place / INCEPTION)
    seen = InceptionExtractor(place / INCEPTION, "edm", device=CPU).see(images)
    torch.testing.assert_close(seen.features, network(images, return_features=True))
    torch.testing.assert_close(seen.logits.softmax(1), network(images, no_output_bias=True))
    assert InceptionExtractor(place / INCEPTION, "clean", device=CPU).see(images).logits is None


def test_statistics_of_another_protocol_are_refused(place: Path, tmp_path: Path) -> None:
    stored = {"student": None, "save_stats": tmp_path / "s.npz", "extractor": str(place / "narrow.pt")}
    evaluate(options(place, protocol="adm", **stored))
    again = {"reference": tmp_path / "s.npz", "extractor": str(place / "narrow.pt"), "out": tmp_path / "out"}
    assert evaluate(options(place, protocol="adm", **again)).rows[-1].metrics["fid"].value > 0
    with pytest.raises(UserError, match=r"'adm: .*'edm: "):
        evaluate(options(place, protocol="edm", **again | {"out": tmp_path / "other"}))


def test_protocols_refuse_few_images(place: Path, tmp_path: Path) -> None:
    for protocol, least in (("clean", "10,000"), ("edm", "50,000"), ("adm", "50,000")):
        small = options(place, protocol=protocol, extractor=str(place / INCEPTION), allow_small=False, out=tmp_path)
        with pytest.raises(UserError, match=f"10 images are too few for the protocol {protocol}, which takes {least}"):
            evaluate(small)


def test_weights_are_looked_for_in_the_cache_and_held_to_a_checksum(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"inception-2015-12-05\.pt does not exist; fetch https://.* and put it there"):
        build_extractor(options(place, protocol="clean"), CPU)
    shutil.copy(place / INCEPTION, tmp_path)
    right = sha256_file(place / INCEPTION)
    identity = build_extractor(options(place, protocol="clean", extractor_sha256=right), CPU).identity
    assert right[:12] in identity
    with pytest.raises(UserError, match="has the sha256"):
        build_extractor(options(place, protocol="clean", extractor_sha256="0" * 64), CPU)
    save(tmp_path / INCEPTION, b"not a network")
    with pytest.raises(UserError, match="cannot be used as a TorchScript Inception network"):
        build_extractor(options(place, protocol="clean"), CPU)
    with pytest.raises(UserError, match="hf download"):
        model_folder("nobody/nothing-here")


def test_dinov2_is_the_class_token_of_a_224_px_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    images = torch.randint(0, 256, (2, 3, 40, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = build_extractor(Options(reference=tmp_path, protocol="dinov2", extractor=str(tmp_path)), CPU)
    with torch.no_grad():
        expected = model(IMAGENET.preprocess.apply(images)).last_hidden_state[:, 0]
    torch.testing.assert_close(seen(images), expected)
    assert "bicubic antialiased 224 px" in seen.identity


class LibraryClip:
    """A CLIPModel as torchmetrics 1.9 expects it: transformers 5 wraps the embeddings in an output object."""

    def __init__(self, model: CLIPModel) -> None:
        self.config, self._model = model.config, model

    def to(self, _device: torch.device) -> "LibraryClip":
        return self

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        return self._model.get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        return self._model.get_text_features(*inputs).pooler_output


def test_the_clip_score_equals_torchmetrics(place: Path, tmp_path: Path) -> None:
    images = torch.stack([torch.from_numpy(np.array(noise_image(i, 40, 40))).permute(2, 0, 1) for i in range(6)])
    for number, image in enumerate(images):
        save(tmp_path / "six" / f"{number}.png", encoded(noise_image(number, 40, 40)))
        assert image.dtype == torch.uint8
    model = LibraryClip(CLIPModel.from_pretrained(place / "clip").eval())
    processor = CLIPProcessor.from_pretrained(place / "clip")
    with torch.no_grad():
        expected = clip_score(list(images), list(PROMPTS) * 3, lambda: (model, processor))
    prompts = save(tmp_path / "prompts.txt", "\n".join(PROMPTS))
    settings = {"student": str(tmp_path / "six"), "num": 6, "prompts": prompts, "clip": str(place / "clip")}
    network = {"protocol": "clip", "extractor": str(place / "clip"), "metrics": ("clip_score", "cmmd")}
    report = evaluate(options(place, out=tmp_path / "out", **settings, **network))
    score = report.rows[-1].metrics["clip_score"]
    raw = Clip(place / "clip", device=CPU)
    cosine = 100 * raw.alignment(raw(images), PROMPTS * 3)
    assert float(cosine.mean().clamp(min=0)) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    assert score.value == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    assert report.rows[-1].metrics["cmmd"].value > 0
    means = cosine.view(3, 2).mean(0)
    told = [(one.prompt, one.num, one.clip_score) for one in report.rows[-1].per_prompt]
    expected = [(prompt, 3, pytest.approx(float(mean))) for prompt, mean in zip(PROMPTS, means, strict=True)]
    assert told == sorted(expected, key=lambda one: one[2].expected)
    assert report.rows[0].per_prompt is None


def test_rewards_are_a_callable_or_a_model_in_the_clip_format(place: Path, tmp_path: Path) -> None:
    prompts = save(tmp_path / "prompts.txt", "\n".join(PROMPTS))
    seen: list[str] = []

    def brightness(images: Tensor, asked: tuple[str, ...]) -> Tensor:
        seen.extend(asked)
        return images.float().mean((1, 2, 3))

    settings = {"prompts": prompts, "rewards": (f"pick={place / 'clip'}",), "metrics": ("fid", "rewards")}
    network = {"protocol": "clip", "extractor": str(place / "clip")}
    report = evaluate(options(place, out=tmp_path / "out", **settings, **network), rewards={"light": brightness})
    figures = report.rows[-1].metrics
    assert figures["reward_light"].value == pytest.approx(127, abs=3)
    assert seen == list(PROMPTS) * 5
    model = Clip(place / "clip", device=CPU)
    scale = float(CLIPModel.from_pretrained(place / "clip").logit_scale.exp())
    images = [torch.from_numpy(np.array(noise_image(100 + i, 20 + i, 24))).permute(2, 0, 1)[None] for i in range(10)]
    cosines = [float(model.alignment(model(image), [PROMPTS[i % 2]])) for i, image in enumerate(images)]
    assert figures["reward_pick"].value == pytest.approx(scale * np.mean(cosines), rel=1e-4)


def test_a_folder_that_is_no_clip_model_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded as a CLIP model"):
        Clip(tmp_path / "clip", device=CPU)
