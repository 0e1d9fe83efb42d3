"""Load a pipeline from one .safetensors file, as model sites and user interfaces share them."""

from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import safe_open

from ...errors import UserError
from .foreign import unasked
from .loading import check_weights, check_whole, line
from .stock_pipeline import SingleFilePipeline, StockPipeline


def load_single_file(file: Path, *, config: str | None, dtype: torch.dtype) -> StockPipeline:
    """`from_single_file` of the pipeline class that the config names, on the CPU.

    Args:
        config: folder or hub id of a pipeline of the same architecture; None lets Diffusers recognise the
            file and fetch its config.

    Raises:
        UserError: not safetensors, damaged, no config at hand, or the file lacks parts of the pipeline.
    """
    check_single_file(file)
    config = config or _recognised(file)
    kind = _pipeline_class(file, config)
    try:
        with unasked():
            pipe = kind.from_single_file(str(file), config=config, dtype=dtype)
    except Exception as error:  # whatever a foreign file can raise, the remedy is in the file or its config
        raise UserError(
            f"{file} cannot be loaded as a {kind.__name__} ({line(error)}). It must hold the whole pipeline, text "
            f"encoders and VAE too, and have the architecture of {config} (teacher.config)."
        ) from error
    check_whole(pipe, file)
    return pipe


def check_single_file(file: Path) -> None:
    """Raises UserError for a file of another kind, or a damaged one."""
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file} is not a .safetensors file: checkpoints of other kinds can run code when they are opened. "
            "Convert it to safetensors, or find one that is published so."
        )
    check_weights(file)


def _recognised(file: Path) -> str:
    """The hub id of the architecture that Diffusers sees in the file's keys and shapes."""
    with safe_open(file, framework="pt") as opened:
        shapes = {key: torch.empty(opened.get_slice(key).get_shape(), device="meta") for key in opened.keys()}  # noqa: SIM118
    recognised: str = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    return recognised


def _pipeline_class(file: Path, config: str) -> type[SingleFilePipeline]:
    try:
        name = DiffusionPipeline.load_config(config)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file} needs the config of {config}, which is neither a pipeline folder here nor to be had from the hub "
            f"({line(error)}). Without a network set teacher.config to a folder with model_index.json and the "
            "parts' configs and tokenizers (their weights are not needed)."
        ) from error
    kind: type[SingleFilePipeline] | None = getattr(diffusers, str(name), None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise UserError(
            f"{config} is a {name}, which Diffusers cannot load from a single file such as {file}. "
            "Give a pipeline folder or a hub id as teacher.path."
        )
    return kind
