"""Pipeline folders as they are found on hubs, where most were saved by earlier versions of the libraries.

Transformers 5 saves less: no `vocab.json` and `merges.txt`, and CLIP's weights without the name of the inner model,
which Transformers 4 takes for random.
"""

import json
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from fastgen.export.export import _save_vocabularies


def publish(pipe: DiffusionPipeline, folder: Path, **saved) -> Path:
    """Saves the pipeline so that Transformers 4 can open it; `saved` goes to `save_pretrained`."""
    pipe.save_pretrained(folder, **saved)
    _save_vocabularies(pipe, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for name, (_, kind) in [(k, v) for k, v in index.items() if isinstance(v, list)]:
        if kind and kind.startswith("CLIPText"):
            for file in (folder / name).glob("*.safetensors"):
                save_file({_inner(key): weight for key, weight in load_file(file).items()}, file, {"format": "pt"})
        if kind == "T5Tokenizer":
            index[name] = ["transformers", "T5TokenizerFast"]
            settings = json.loads((folder / name / "tokenizer_config.json").read_text())
            settings.pop("extra_special_tokens", None)
            (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _inner(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
