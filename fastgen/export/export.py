"""A trained generator as a stock pipeline folder."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from ..files import atomic_folder
from ..notes import Notes
from .card import card


def export(pipe: DiffusionPipeline, notes: Notes, folder: Path) -> Path:
    """Saves a pipeline with its notes and model card; what was in `folder` is replaced once the new one is whole."""
    with atomic_folder(folder, replace=True) as temporary:
        pipe.save_pretrained(temporary, safe_serialization=True)
        for file in temporary.rglob("*.json"):
            _forget_origin(file)
        notes.write(temporary)
        (temporary / "README.md").write_text(card(pipe, notes), encoding="utf-8")
    return folder


def _forget_origin(file: Path) -> None:
    """Removes the path of the machine that the weights came from."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
