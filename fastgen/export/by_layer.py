"""Networks written tensor by tensor: files as Diffusers saves them, of a network that is never whole in memory."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from ..models.experts import networks_in
from ..models.made import Made
from ..models.pipelines.components import denoisers_of
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.watch import replaced
from .header import METADATA, encoded

PATTERN, LARGEST = "diffusion_pytorch_model{suffix}.safetensors", "10GB"  # as Diffusers' own `save_pretrained`
KINDS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""The names that safetensors has for dtypes, in its order: the last of them are first in a file."""


@contextmanager
def written_by_layer(pipe: StockPipeline, network: Made) -> Iterator[None]:
    """Within, the denoisers of a pipeline, which lie on the meta device, save the tensors of a network like them.

    Tensors of theirs that are elsewhere are saved as they are.
    """
    with ExitStack() as within:
        for part, start in zip(denoisers_of(pipe).values(), networks_in(network.like), strict=True):
            within.enter_context(replaced(part, "save_pretrained", partial(_save, part, network, start)))
        yield


def _save(part: Any, network: Made, start: str, folder: str | os.PathLike[str], **_: Any) -> None:
    """Writes a part, whose names begin with `start` in the network, as one file or as shards with their index."""
    place, state = Path(folder), part.state_dict()
    part.save_config(place)
    split = split_torch_state_dict_into_shards(state, filename_pattern=PATTERN, max_shard_size=LARGEST)
    for file, names in split.filename_to_tensors.items():
        write_safetensors(place / file, {name: state[name] for name in names}, lambda name: network[start + name])
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (place / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def write_safetensors(file: Path, outline: Mapping[str, Tensor], made: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file, byte for byte as `safetensors.torch.save_file` does with `{"format": "pt"}`.

    Args:
        outline: name -> the tensor to write; on the meta device, only the dtype and shape of what `made` makes.
        made: name -> the tensor in the place of one on the meta device; called once for each, in the file's order.
    """
    order, start = list(KINDS), 0
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    names = sorted(outline, key=lambda name: (-order.index(outline[name].dtype), name))
    for name in names:
        tensor, offsets = outline[name], [start, start + outline[name].nbytes]
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.nbytes
    with file.open("wb") as opened:
        opened.write(encoded(header))
        for name in names:
            tensor = made(name) if outline[name].is_meta else outline[name]
            assert (tensor.dtype, tensor.shape) == (outline[name].dtype, outline[name].shape), name
            opened.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
