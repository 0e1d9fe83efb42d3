"""Parts of a pipeline that training leaves alone: an export has them file by file as the teacher's folder does.

A library that saves a part again writes what its own version reads: Transformers 5 leaves out `vocab.json` and
`merges.txt`, without which Transformers 4 opens no tokenizer, and names weights of new text encoders otherwise.
"""

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.pipelines.components import denoisers_of
from ..models.pipelines.folders import INDEX
from ..models.pipelines.stock_pipeline import StockPipeline

_HEAVY = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf"}
_SHARDS = ".safetensors.index"
_PLAIN = re.compile(r"\w+(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Frozen:
    """Parts that are copied.

    Args:
        folder: folder of the pipeline that they were loaded from.
        parts: names of the parts.
        variant: variant of the files that were loaded; the copies have plain names, which every call finds.
    """

    folder: Path
    parts: tuple[str, ...]
    variant: str | None = None

    def copy(self, place: Path) -> None:
        """Copies the parts, and what the pipeline's index says of them, into a folder that has an index."""
        for part in self.parts:
            for file, name in _files(self.folder / part, self.variant).items():
                target = place / part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if _SHARDS in file.name:
                    target.write_text(_plain_shards(file, self.variant), encoding="utf-8")
                else:
                    shutil.copyfile(file, target)
        index, theirs = (json.loads((at / INDEX).read_text(encoding="utf-8")) for at in (place, self.folder))
        index |= {part: theirs[part] for part in self.parts}
        (place / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def frozen_parts(pipe: StockPipeline, folder: Path, *, variant: str | None, but: Collection[str] = ()) -> Frozen:
    """The parts of a pipeline that its folder has, but for denoisers, scheduler and those that are named.

    Args:
        folder: folder that the pipeline was loaded from.
        variant: variant of the weight files that were loaded.
        but: parts that are no longer what they were.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    left = {*denoisers_of(pipe), "scheduler", *but}
    parts = [name for name, part in pipe.components.items() if part is not None and name in index and name not in left]
    return Frozen(folder, tuple(part for part in parts if _whole(pipe, folder / part, variant)), variant)


def touched(pipe: StockPipeline, untouched: StockPipeline) -> list[str]:
    """The parts of a pipeline whose weights are not those of the same pipeline elsewhere."""
    return [name for name, part in pipe.components.items() if not _equal(part, untouched.components.get(name))]


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, nn.Module) or not isinstance(other, nn.Module):
        return True
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours)


def _whole(pipe: StockPipeline, source: Path, variant: str | None) -> bool:
    """Whether a part's folder holds all that a network needs, or anything at all where it is none."""
    files = _files(source, variant) if source.is_dir() else {}
    network = isinstance(pipe.components[source.name], nn.Module)
    return any(file.suffix == ".safetensors" for file in files) if network else bool(files)


def _files(source: Path, variant: str | None) -> dict[Path, str]:
    """file -> its path below the part's copy: settings, and the weights that Diffusers loads for this variant."""
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and file.suffix != ".py"]
    heavy = [file for file in files if file.suffix in _HEAVY or ".index." in file.name]
    own = [file for file in heavy if variant and _plain(file.name, variant) != file.name]
    chosen = {file for file in own or heavy if _PLAIN.fullmatch(_plain(file.name, variant))}
    return {
        file: file.relative_to(source).with_name(_plain(file.name, variant) if file in chosen else file.name).as_posix()
        for file in files
        if file not in heavy or file in chosen
    }


def _plain(name: str, variant: str | None) -> str:
    """A weight file's name without its variant."""
    return re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name) if variant else name


def _plain_shards(index: Path, variant: str | None) -> str:
    listed = json.loads(index.read_text(encoding="utf-8"))
    listed["weight_map"] = {key: _plain(name, variant) for key, name in listed["weight_map"].items()}
    return json.dumps(listed, indent=2, sort_keys=True) + "\n"
