import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from rounding import assert_alike
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from eval.images.decode import Reading, image_batches
from eval.images.sets import open_images
from eval.measures.frechet import Moments, Target
from eval.measures.statistics_file import load_statistics
from eval.networks.extractors import TransformersExtractor
from eval.networks.preprocessing import Resize, preprocess_for
from fastgen.errors import UserError

SYMMETRIC = Resize.to_range(32, -1, 1, kernel="bilinear", antialias=False)
IMAGES = torch.randint(0, 256, (5, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ResNet of three classes, stored in half precision."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", id2label={0: "a", 1: "b", 2: "c"}
    )
    folder = tmp_path_factory.mktemp("extractor") / "resnet"
    ResNetForImageClassification(config).half().save_pretrained(folder)
    return folder


def extractor(folder: Path, resize: Resize | None = SYMMETRIC) -> TransformersExtractor:
    return TransformersExtractor(folder, preprocess_for(folder, resize))


def test_features_are_the_pooled_output_in_float32(classifier: Path) -> None:
    pixels = F.interpolate(IMAGES.float() / 127.5 - 1, (32, 32), mode="bilinear", align_corners=False)
    model = AutoModel.from_pretrained(classifier, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(pixels).pooler_output.flatten(1)
    seen = extractor(classifier)
    assert (seen.dim, seen(IMAGES).dtype, seen.resizes) == (12, torch.float32, True)
    torch.testing.assert_close(seen(IMAGES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([seen(image[None]) for image in IMAGES]), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_not_rounded_to_tf32(classifier: Path) -> None:
    seen, settings = extractor(classifier), []
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda *_: settings.append(convolutions.fp32_precision)
    )
    with handle:
        seen(IMAGES)
    assert set(settings) == {"ieee"}
    assert convolutions.fp32_precision == before != "ieee"


def test_logits_come_from_the_classification_head(classifier: Path) -> None:
    seen = extractor(classifier)
    model = AutoModelForImageClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(SYMMETRIC.preprocess.apply(IMAGES)).logits
    assert seen.classes == ("a", "b", "c")
    torch.testing.assert_close(seen.see(IMAGES).logits, expected, rtol=1e-4, atol=1e-5)


def test_resizing_and_normalising_follow_their_settings() -> None:
    resize = Resize(16, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), kernel="bicubic", antialias=True)
    small = F.interpolate(IMAGES.double() / 255, (16, 16), mode="bicubic", antialias=True)
    expected = torch.stack([(small[:, c] - (0.5, 0.4, 0.3)[c]) / (0.1, 0.2, 0.3)[c] for c in range(3)], 1)
    torch.testing.assert_close(resize.preprocess.apply(IMAGES).double(), expected, rtol=1e-4, atol=1e-5)
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    assert SYMMETRIC.preprocess.apply(black_and_white)[:, 0, 0, 0].tolist() == [-1, 1]


def test_identity_names_all_that_moves_a_feature_and_nothing_else(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "renamed")
    identity = extractor(classifier).identity
    assert extractor(tmp_path / "renamed").identity == identity
    plain = extractor(classifier, Resize(32, (0.5,) * 3, (0.5,) * 3)).identity
    assert plain == identity
    others = [
        Resize(40, (0.5,) * 3, (0.5,) * 3),
        Resize(32, (0.4,) * 3, (0.5,) * 3),
        Resize(32, (0.5,) * 3, (0.4,) * 3),
        Resize(32, (0.5,) * 3, (0.5,) * 3, kernel="bicubic"),
        Resize(32, (0.5,) * 3, (0.5,) * 3, antialias=True),
    ]
    assert len({identity, *(extractor(classifier, other).identity for other in others)}) == 6
    model = AutoModelForImageClassification.from_pretrained(classifier)
    model.classifier[1].bias.data += 1
    model.save_pretrained(tmp_path / "trained further")
    assert extractor(tmp_path / "trained further").identity != identity


def test_a_declared_preprocessing_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ViTModel(VIT).save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path)(pixels).pooler_output
    seen = extractor(tmp_path, None)
    torch.testing.assert_close(seen(IMAGES), expected)
    assert (seen.classes, seen.see(IMAGES).logits, seen.resizes) == ((), None, True)
    with pytest.raises(UserError, match=r"preprocessor_config\.json.*contradict"):
        extractor(tmp_path, SYMMETRIC)
    identity = seen.identity
    declared = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(declared | {"image_std": [0.3] * 3}))
    assert extractor(tmp_path, None).identity != identity


def test_a_model_that_pools_nothing_gives_its_mean_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ViTForImageClassification(VIT).save_pretrained(tmp_path)
    with torch.no_grad():
        body = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
        expected = body(SYMMETRIC.preprocess.apply(IMAGES)).last_hidden_state.mean(1)
    seen = extractor(tmp_path)
    torch.testing.assert_close(seen(IMAGES), expected)
    assert seen.see(IMAGES).logits.shape == (5, 2)


def test_an_untrained_pooler_is_not_a_feature(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ViTModel(VIT, add_pooling_layer=False).save_pretrained(tmp_path)
    first, second = extractor(tmp_path), extractor(tmp_path)
    assert_alike(first(IMAGES), second(IMAGES))
    assert "mean state 16" in first.identity


def test_unusable_folders_are_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        extractor(tmp_path)
    with pytest.raises(UserError, match="must be said: give --extractor-size"):
        extractor(classifier, None)

    broken = shutil.copytree(classifier, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        extractor(broken)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        extractor(broken)
    (broken / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json does not describe"):
        extractor(broken, None)


def test_missing_weights_are_refused(classifier: Path, tmp_path: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(classifier)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"lacks 2 weights of a ResNetForImageClassification.*classifier"):
        extractor(tmp_path)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    tiny.clip_text_model(tiny.clip_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CLIPTextModel, which reads input_ids"):
        extractor(tmp_path)


def test_a_size_that_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    ViTModel(VIT).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"bilinear plain 40 px.*--extractor-size"):
        extractor(tmp_path, Resize(40, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.slow
def test_real_cifar10_has_its_known_distance_and_accuracy(assets: Path) -> None:
    folder = assets / "extractors" / "cifar10_resnet"
    seen = extractor(folder, Resize.to_range(96, -1, 1, kernel="bilinear", antialias=False))
    moments, hits = Moments.zeros(seen.dim), 0
    for batch in image_batches(open_images(assets / "data" / "cifar10" / "test.parquet"), Reading(100)):
        sight = seen.see(batch.images)
        moments.update(sight.features)
        hits += int((sight.logits.argmax(1) == batch.labels).sum())
    train = load_statistics(folder / "cifar10_train_stats.npz")
    assert Target.of(train).distance(moments.statistics(seen.identity)) == pytest.approx(0.375, abs=0.002)
    assert hits / moments.count == pytest.approx(0.8881, abs=0.0005)
