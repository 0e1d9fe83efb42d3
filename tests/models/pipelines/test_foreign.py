"""Folders from elsewhere: safetensors and JSON alone are opened, whatever an index names, and no code is run."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from diffusers import DiffusionPipeline

from eval.networks.clip import Clip
from eval.networks.extractors import TransformersExtractor
from eval.networks.preprocessing import Resize, preprocess_for
from fastgen.errors import UserError
from fastgen.models.pipelines.foreign import check_part, unasked
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.weightless import weightless

RESIZE = Resize.to_range(32, -1, 1, kernel="bilinear", antialias=False)


@pytest.fixture(scope="module")
def built() -> DiffusionPipeline:
    return tiny.stable_diffusion()


@pytest.fixture
def pipeline(built: DiffusionPipeline, tmp_path: Path) -> Path:
    built.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture(autouse=True)
def nothing_else_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        pytest.fail("opened")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
@pytest.mark.parametrize("name", ["w.bin", "../x.safetensors", "/x.safetensors", 3])
def test_an_index_that_names_other_files_than_safetensors_beside_it_is_refused(
    pipeline: Path, part: str, stem: str, name: object
) -> None:
    folder = pipeline / part
    (folder / f"{stem}.safetensors").rename(folder / "w.bin")
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(UserError, match=rf"{stem}\.safetensors\.index\.json names .*which is no safetensors file"):
        load(pipeline, device="cpu")


def test_an_adapter_in_a_part_is_refused(pipeline: Path) -> None:
    (pipeline / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    for opened in (lambda: load(pipeline, device="cpu"), lambda: weightless(str(pipeline), dtype=torch.float32)):
        with pytest.raises(UserError, match=r"text_encoder holds adapter_config\.json"):
            opened()


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', "{", "[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json (has no weight_map|is damaged)"):
        check_part(tmp_path)


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """A folder whose config, model, tokenizer and processor are classes of a file in it, which says that it was run."""
    folder = tmp_path / "mine"
    folder.mkdir()
    kinds = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoModelForImageClassification")
    mapped: dict[str, Any] = {kind: "code.Mine" for kind in kinds} | {"AutoTokenizer": ["code.Mine", None]}
    told = {"model_type": "mine", "auto_map": mapped, "architectures": ["Mine"]}
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(told | {"image_processor_type": "Mine", "tokenizer_class": "Mine"}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    return folder


def test_no_code_in_a_folder_is_run_and_no_question_is_asked(with_code: Path) -> None:
    for opened in (
        lambda: TransformersExtractor(with_code, RESIZE.preprocess),
        lambda: preprocess_for(with_code, None),
        lambda: Clip(with_code, device=torch.device("cpu")),
    ):
        with pytest.raises(UserError):
            opened()
    assert not (with_code.parent / "ran").exists()


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor"])
def test_what_a_pipeline_loads_by_itself_asks_no_question_either(with_code: Path, kind: str) -> None:
    with unasked(), pytest.raises((ValueError, OSError)):
        getattr(transformers, kind).from_pretrained(with_code)
    assert not (with_code.parent / "ran").exists()
